//! Failpoints: named places between the steps of an operation, where a test makes the process die, stop, wait or fail.
//!
//! `failpoint!("sandbox.run.recorded")` stands where a step ends, in a function whose error is made from [`Injected`];
//! `failpoint!("...", infallible)` where nothing can be returned. Without the feature `armed` (the crates that use it
//! forward their feature `failpoints`) both are empty: no code, no text, no look at the environment.
//!
//! A process learns from its environment what to do, and so do the processes that it starts:
//!
//! ```text
//! COFFERDAM_FAILPOINTS      point=action[@n[+]][;...]   n: at the n-th passing, counted over all processes, or from it
//!                           on; 1 by default
//! COFFERDAM_FAILPOINTS_DIR  a folder; each passing of an armed point makes the file <point>.<k>, which holds
//!                           the process's id and, where it acted, the action's name
//! ```
//!
//! Actions: `kill` (SIGKILL to itself), `stop` (SIGSTOP to itself), `error`, `sleep:<milliseconds>`, `note`
//! (nothing: only the marks are made).
//!
//! Invariant: [`POINTS`] names every point in the sources, once; a name that it lacks does not compile, and
//! `tests/tests/arch.rs` compares both.

mod points;
#[cfg(feature = "armed")]
mod armed;

pub use points::{POINTS, Place, Point};

#[cfg(feature = "armed")]
pub use armed::{Injected, environment, pass};

/// Whether the list has the name; for the macro.
#[must_use]
pub const fn is_listed(name: &str) -> bool {
    let mut at = 0;
    while at < POINTS.len() {
        if same(POINTS[at].name.as_bytes(), name.as_bytes()) {
            return true;
        }
        at += 1;
    }
    false
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// A point between two steps.
#[cfg(feature = "armed")]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {{
        const { assert!($crate::is_listed($name), "the list of failpoints lacks it") };
        $crate::pass($name)?;
    }};
    ($name:literal, infallible) => {{
        const { assert!($crate::is_listed($name), "the list of failpoints lacks it") };
        let _ = $crate::pass($name);
    }};
}

/// A point between two steps.
#[cfg(not(feature = "armed"))]
#[macro_export]
macro_rules! failpoint {
    ($($point:tt)*) => {};
}
