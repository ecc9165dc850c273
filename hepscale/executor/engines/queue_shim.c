/* What work_queue.h does not give: a wait that returns when anything has happened. */
#include <string.h>
#include <sys/timerfd.h>
#include <cctools/work_queue.h>

struct link;
struct link *link_attach_to_fd(int fd);
void link_close(struct link *link);
int debug_config_file_e(const char *path);
int __real_link_address_remote(struct link *link, char *address, int *port);
struct work_queue_task *work_queue_wait_internal(
	struct work_queue *q, int timeout, struct link *uplink, int *active);
void update_catalog(struct work_queue *q, struct link *uplink, int force);

struct hs_timer {
	int fd;
	struct link *link;
	time_t advertised;
};

/* The library asks for the address of our timer, and prints it without looking at the answer. */
int __wrap_link_address_remote(struct link *link, char *address, int *port)
{
	strcpy(address, "0.0.0.0");
	*port = 0;
	return __real_link_address_remote(link, address, port);
}

static struct hs_timer *hs_timer_create(void)
{
	struct hs_timer *timer = calloc(1, sizeof(*timer));
	timer->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	timer->link = link_attach_to_fd(timer->fd);
	return timer;
}

static void hs_timer_delete(struct hs_timer *timer)
{
	link_close(timer->link);
	free(timer);
}

static void arm(struct hs_timer *timer, double timeout_s)
{
	struct itimerspec when = {{0, 0}, {0, 1}};
	if (timeout_s > 1e-9) {
		when.it_value.tv_sec = (time_t) timeout_s;
		when.it_value.tv_nsec = (long) ((timeout_s - (time_t) timeout_s) * 1e9);
	}
	timerfd_settime(timer->fd, 0, &when, NULL);
}

/* The library's own wait cannot be shorter than a second, does not return when a watched file has
 * grown, and goes on after a signal. What it does for a foreman is one round of its loop, polling
 * one descriptor more, for a second at most; that descriptor is a timer here. */
static struct work_queue_task *hs_wait(
	struct work_queue *q, struct hs_timer *timer, double timeout_s)
{
	/* before the library does, which would describe us as a foreman */
	if (work_queue_name(q) && time(0) - timer->advertised >= 30) {
		update_catalog(q, NULL, 1);
		timer->advertised = time(0);
	}
	int active = 0;
	arm(timer, timeout_s);
	struct work_queue_task *task = work_queue_wait_internal(q, 5, timer->link, &active);
	if (!task && !active) {
		/* the end of the round may have given up a worker: the next one returns its tasks */
		arm(timer, 0);
		task = work_queue_wait_internal(q, 5, timer->link, &active);
	}
	return task;
}
