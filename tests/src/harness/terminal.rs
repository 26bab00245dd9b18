//! A terminal for a command: a pseudo-terminal that is the command's own, and somebody who types and reads at it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use super::eventually;

/// The terminal and the command at it.
pub struct Terminal {
    screen: Arc<Mutex<Vec<u8>>>,
    keyboard: File,
    device: File,
    child: Child,
}

impl Terminal {
    /// Runs `command` in a session of its own, at a new terminal of this size.
    pub fn start(command: &Command, netns: &super::netns::Netns, columns: u16, rows: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("no terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("the terminal stays locked");
        let name = ptsname(&master, Vec::new()).expect("the terminal has no name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let device: OwnedFd = rustix::fs::open(name, flags, Mode::empty()).expect("cannot open the terminal");
        let device = File::from(device);
        let keyboard = File::from(master);
        // So that it becomes the controlling terminal, and signals of changed sizes reach the command.
        let mut session = netns.command("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        let end = || device.try_clone().expect("no more descriptors");
        session.stdin(end()).stdout(end()).stderr(end());
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (shown, mut from) = (Arc::clone(&screen), keyboard.try_clone().expect("no more descriptors"));
        // It ends with the terminal's last descriptor.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                shown.lock().expect("poisoned").extend_from_slice(&buffer[..count]);
            }
        });
        let terminal = Self { screen, keyboard, device, child: session.spawn().expect("cannot run setsid") };
        terminal.resize(columns, rows);
        terminal
    }

    /// The settings, in words that can be compared.
    pub fn settings(&self) -> String {
        format!("{:?}", tcgetattr(&self.device).expect("the terminal is gone"))
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.keyboard, size).expect("the terminal is gone");
    }

    pub fn write(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("the terminal is gone");
    }

    /// All that was shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("poisoned")).into_owned()
    }

    /// Waits until `text` was shown; panics with the screen if it is not within ten seconds.
    pub async fn shows(&self, text: &str) {
        let shown = eventually(Duration::from_secs(10), async || self.screen().contains(text)).await;
        assert!(shown, "{text:?} does not come: {:?}", self.screen());
    }

    /// The command's process.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for the command's end; panics if it does not come within ten seconds.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        let child = &mut self.child;
        let ended = eventually(Duration::from_secs(10), async || {
            status = child.try_wait().expect("cannot wait for the command");
            status.is_some()
        });
        let ended = ended.await;
        assert!(ended, "the command does not end: {:?}", self.screen());
        status.expect("it has ended")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
