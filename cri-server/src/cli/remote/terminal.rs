//! Our own terminal while it is another one's: raw, and as before afterwards.
//!
//! Invariant: the settings come back with the drop of the guard: at the end, after an error, a signal that is waited for, and
//! a panic.

use std::io::{self, IsTerminal, stderr, stdin, stdout};

use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether what is typed here can be passed on key by key.
pub(in crate::cli) fn has_terminal() -> bool {
    stdin().is_terminal()
}

/// The terminal's settings before they were changed.
pub(super) struct RawTerminal {
    before: Termios,
    raw: Termios,
}

impl RawTerminal {
    /// Makes the terminal at stdin raw: no echo, no lines, no signals, no translation.
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        let terminal = Self { before, raw };
        terminal.resume()?;
        Ok(terminal)
    }

    /// Raw again, after we were stopped and whoever had the terminal meanwhile left it otherwise.
    pub(super) fn resume(&self) -> io::Result<()> {
        Ok(tcsetattr(stdin(), OptionalActions::Drain, &self.raw)?)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Without waiting for output that a stopped terminal does not take; a terminal that is gone needs nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// The size of the terminal that we are at, in the form of the resize stream; nothing where we are at none.
pub(super) fn size() -> Option<String> {
    let sizes = [tcgetwinsize(stdin()), tcgetwinsize(stdout()), tcgetwinsize(stderr())];
    let Winsize { ws_col, ws_row, .. } = sizes.into_iter().find_map(Result::ok)?;
    Some(format!(r#"{{"Width":{ws_col},"Height":{ws_row}}}"#))
}
