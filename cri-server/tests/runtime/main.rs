//! The daemon's side of the shim protocol, driven against real shims (`privileged_*`) and against a fake one that fails
//! in every way a shim can. Invariant: each test leaves no process, mount or file behind.

mod fake;
mod real;
