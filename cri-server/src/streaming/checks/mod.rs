//! What must hold for any bytes that a client sends: one function for each parser and machine, which panics when it
//! does not. The fuzz targets in `fuzz/` call them with what the fuzzer finds, `tests` with the corpus and changes to it.
//!
//! The first byte of an input chooses how the rest is cut and what the streams' handles do meanwhile; so one file says
//! all, and the rest of it is what a client would really send.

mod bench;
mod command;
mod forward;
mod spdy;
#[cfg(test)]
mod tests;
mod tunnel;
mod upgrade;
mod websocket;

/// What holds for any bytes; it panics where it does not.
type Check = fn(&[u8]);

/// The checks by the names of their fuzz targets and corpora.
pub const ALL: [(&str, Check); 8] = [
    ("spdy_frames", spdy::frames),
    ("spdy_headers", spdy::headers),
    ("spdy_connection", spdy::connection),
    ("websocket", websocket::check),
    ("upgrade", upgrade::check),
    ("command", command::check),
    ("forward", forward::check),
    ("tunnel", tunnel::check),
];

/// Runs the check of this name.
///
/// # Panics
/// When there is no such check, or the bytes show a fault.
pub fn run(name: &str, bytes: &[u8]) {
    let check = ALL.iter().find(|(own, _)| *own == name).map(|(_, check)| check);
    check.unwrap_or_else(|| panic!("no check is called {name}"))(bytes);
}
