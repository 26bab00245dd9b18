//! What the daemon is told of a task in a machine: the same as of any other.

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;
use protobuf::MessageField;

use crate::publish::{Publisher, to_timestamp};
use crate::task::state::Exit;

pub fn created(publisher: &Publisher, id: &str, bundle: &str, pid: u32) {
    let mut event = events::TaskCreate::new();
    (event.container_id, event.bundle, event.pid) = (id.to_owned(), bundle.to_owned(), pid);
    publisher.send(topics::TASK_CREATE_EVENT_TOPIC, &event);
}

pub fn started(publisher: &Publisher, id: &str, exec: &str, pid: u32) {
    if exec.is_empty() {
        let mut event = events::TaskStart::new();
        (event.container_id, event.pid) = (id.to_owned(), pid);
        publisher.send(topics::TASK_START_EVENT_TOPIC, &event);
    } else {
        let mut event = events::TaskExecStarted::new();
        (event.container_id, event.exec_id, event.pid) = (id.to_owned(), exec.to_owned(), pid);
        publisher.send(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
    }
}

pub fn exec_added(publisher: &Publisher, id: &str, exec: &str) {
    let mut event = events::TaskExecAdded::new();
    (event.container_id, event.exec_id) = (id.to_owned(), exec.to_owned());
    publisher.send(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
}

pub fn exited(publisher: &Publisher, id: &str, exec: &str, exit: Exit) {
    let mut event = events::TaskExit::new();
    event.container_id = id.to_owned();
    // The first process bears the container's own name.
    event.id = if exec.is_empty() { id.to_owned() } else { exec.to_owned() };
    event.pid = exit.pid.cast_unsigned();
    event.exit_status = exit.status;
    event.exited_at = MessageField::some(to_timestamp(exit.at));
    publisher.exit(&event);
}

pub fn deleted(publisher: &Publisher, id: &str, exec: &str, exit: Exit) {
    let mut event = events::TaskDelete::new();
    (event.container_id, event.id) = (id.to_owned(), exec.to_owned());
    event.pid = exit.pid.cast_unsigned();
    event.exit_status = exit.status;
    event.exited_at = MessageField::some(to_timestamp(exit.at));
    publisher.send(topics::TASK_DELETE_EVENT_TOPIC, &event);
}
