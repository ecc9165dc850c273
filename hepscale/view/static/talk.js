// From the page to Python while the cell still runs: no single way works in every kernel.

const INTERRUPT_MS = 600;
const DEAF_INTERRUPT_MS = 150;
const HINT_MS = 2500;

/** Sends a message in every way that may be heard; `heard` is called by the answer, maybe twice. */
function tell(model, content, heard) {
  model.send(content);
  return call(model, content, heard);
}

async function call(model, content, heard) {
  const kernel = model.widget_manager?.kernel;
  const target = model.get("channel");
  if (!target || !kernel?.supportsSubshells) return;
  // ipykernel 7.4 hears on a comm of the widget only after the cell; one of our own gets a subshell.
  const comm = kernel.createComm(target);
  comm.onMsg = heard;
  await comm.subshellStarted;
  comm.open(content);
}

/** Makes the button that ends the run and keeps what has arrived. */
function stopButton(model, parent) {
  const button = element("button", "stop", parent);
  button.type = "button";
  button.title = "Hand out no more work and keep what has arrived";
  const hint = element("span", "hint", parent.parentNode);
  hint.setAttribute("role", "status");
  const timers = [];
  let waiting = false;
  const quiet = () => timers.splice(0).forEach(clearTimeout);
  const show = () => {
    button.hidden = !model.get("channel");
    button.disabled = waiting;
    setText(button, waiting ? "Stopping…" : "Stop and keep");
  };
  const heard = () => clearTimeout(timers[0]);
  // Asked at once, so that a click need not wait to find out that nothing but an interrupt is left.
  let answers = false, asked = "";
  const ask = () => {
    const channel = model.get("channel");
    if (!channel || channel === asked) return;
    asked = channel;
    call(model, { type: "hello" }, () => (answers = true)).catch(() => {});
  };
  const interrupt = () => {
    model.widget_manager?.kernel?.interrupt?.()?.catch?.(() => {});
  };
  const onAnswer = (content) => {
    if (content?.type === "heard") heard();
  };
  button.addEventListener("click", () => {
    waiting = true;
    show();
    // A kernel without subshells hears nothing but an interrupt, which a run takes as this button.
    const wait = answers ? INTERRUPT_MS : DEAF_INTERRUPT_MS;
    const soon = model.widget_manager?.kernel?.supportsSubshells ? wait : 0;
    timers.push(setTimeout(interrupt, soon));
    timers.push(setTimeout(() => {
      setText(hint, "Not stopped yet: the kernel is busy with something that cannot be interrupted. " +
        "It stops as soon as that is done.");
    }, HINT_MS));
    tell(model, { type: "stop" }, heard).catch(() => {});
  });
  model.on("msg:custom", onAnswer);
  model.on("change:channel", show);
  model.on("change:channel", ask);
  show();
  ask();
  return () => {
    quiet();
    model.off("msg:custom", onAnswer);
    model.off("change:channel", show);
    model.off("change:channel", ask);
  };
}
