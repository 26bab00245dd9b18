//! What a stream is for: the line at its beginning.

use std::fmt;
use std::str::FromStr;

/// No purpose is longer.
pub const LONGEST: usize = 200;
const LONGEST_NAME: usize = 160;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// The agent's own service.
    Agent,
    /// The Task service of the container code in the guest.
    Task,
    /// Bytes for a process; the name is of the stream, as the process will know it.
    Input(String),
    /// Bytes of a process.
    Output(String),
    /// A connection to this port of the pod, on its loopback. Both directions; an end of one leaves the other open.
    Port(u16),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PurposeError {
    #[error("{0:?} is no purpose of a stream")]
    Unknown(String),
    #[error("{0:?} is not usable as a stream's name")]
    Name(String),
    #[error("{0:?} is no port")]
    Port(String),
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Purpose::Agent => f.write_str("agent"),
            Purpose::Task => f.write_str("task"),
            Purpose::Input(name) => write!(f, "in {name}"),
            Purpose::Output(name) => write!(f, "out {name}"),
            Purpose::Port(port) => write!(f, "port {port}"),
        }
    }
}

impl FromStr for Purpose {
    type Err = PurposeError;

    fn from_str(line: &str) -> Result<Self, PurposeError> {
        match line.split_once(' ') {
            None if line == "agent" => Ok(Purpose::Agent),
            None if line == "task" => Ok(Purpose::Task),
            Some(("in", name)) => Ok(Purpose::Input(checked(name)?)),
            Some(("out", name)) => Ok(Purpose::Output(checked(name)?)),
            Some(("port", number)) => match number.parse() {
                Ok(port @ 1..) => Ok(Purpose::Port(port)),
                _ => Err(PurposeError::Port(number.chars().take(LONGEST_NAME).collect())),
            },
            _ => Err(PurposeError::Unknown(line.chars().take(LONGEST_NAME).collect())),
        }
    }
}

/// Names become names of files in the guest.
fn checked(name: &str) -> Result<String, PurposeError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fits = !name.is_empty() && name.len() <= LONGEST_NAME && !name.starts_with('.');
    if fits && name.chars().all(plain) {
        Ok(name.to_owned())
    } else {
        Err(PurposeError::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_are_lines() {
        let (input, output) = (Purpose::Input("a-1".into()), Purpose::Output("b.2".into()));
        for purpose in [Purpose::Agent, Purpose::Task, input, output, Purpose::Port(1), Purpose::Port(65535)]
        {
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
    }

    #[test]
    fn a_port_is_a_number_of_a_port() {
        for line in ["port 0", "port 65536", "port -1", "port ", "port 80 81", "port http"] {
            assert!(line.parse::<Purpose>().is_err(), "{line:?}");
        }
    }

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for line in ["in ../x", "out a/b", "in ", "out .", "in \u{0}", "agent x", "", "out a b"] {
            assert!(line.parse::<Purpose>().is_err(), "{line:?}");
        }
        assert!(format!("in {}", "x".repeat(500)).parse::<Purpose>().is_err());
    }
}
