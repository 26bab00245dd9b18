//! What a process does at an armed point.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// The failure that a test asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected(pub &'static str);

impl std::fmt::Display for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failpoint {}", self.0)
    }
}

impl std::error::Error for Injected {}

impl From<Injected> for io::Error {
    fn from(injected: Injected) -> Self {
        io::Error::other(injected)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Error,
    Sleep(Duration),
    Note,
}

#[derive(Debug, PartialEq, Eq)]
struct Order {
    point: String,
    action: Action,
    nth: u32,
    /// At every later passing, too.
    onwards: bool,
}

struct Orders {
    folder: PathBuf,
    orders: Vec<Order>,
}

const ORDERS_VARIABLE: &str = "COFFERDAM_FAILPOINTS";
const FOLDER_VARIABLE: &str = "COFFERDAM_FAILPOINTS_DIR";

static ORDERS: OnceLock<Option<Orders>> = OnceLock::new();

/// Does what the environment says of this point.
///
/// # Errors
/// The injected one.
///
/// # Panics
/// When the environment cannot be understood: a test must not pass because its order was not.
pub fn pass(name: &'static str) -> Result<(), Injected> {
    let Some(Orders { folder, orders }) = ORDERS.get_or_init(from_environment) else { return Ok(()) };
    let Some(order) = orders.iter().find(|order| order.point == name) else { return Ok(()) };
    let (number, mut mark) = count(folder, name).unwrap_or_else(|e| panic!("failpoint {name}: {e}"));
    if number != order.nth && !(order.onwards && number > order.nth) {
        return Ok(());
    }
    // The mark is made already; what it lacks then is a word for people.
    let _ = write!(mark, " {:?}", order.action);
    match order.action {
        Action::Kill => send(Signal::KILL),
        Action::Stop => send(Signal::STOP),
        Action::Error => return Err(Injected(name)),
        Action::Sleep(time) => std::thread::sleep(time),
        Action::Note => {}
    }
    Ok(())
}

/// What a process has to be given that does not inherit the environment.
pub fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    [ORDERS_VARIABLE, FOLDER_VARIABLE].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

fn send(signal: Signal) {
    if let Err(error) = kill_process(getpid(), signal) {
        panic!("failpoint: {error}");
    }
}

/// Makes the next mark of this point: two processes that pass at once get different numbers.
fn count(folder: &Path, name: &str) -> io::Result<(u32, fs::File)> {
    for number in 1.. {
        let path = folder.join(format!("{name}.{number}"));
        match fs::File::options().write(true).create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(mut mark) => {
                write!(mark, "{}", std::process::id())?;
                return Ok((number, mark));
            }
        }
    }
    Err(io::ErrorKind::QuotaExceeded.into())
}

fn from_environment() -> Option<Orders> {
    let text = std::env::var(ORDERS_VARIABLE).ok()?;
    let folder = std::env::var_os(FOLDER_VARIABLE).expect("COFFERDAM_FAILPOINTS_DIR is not set");
    let read = |word: &str| parse(word).unwrap_or_else(|| panic!("COFFERDAM_FAILPOINTS: {word:?}"));
    let orders = text.split(';').filter(|word| !word.is_empty()).map(read).collect();
    Some(Orders { folder: folder.into(), orders })
}

fn parse(word: &str) -> Option<Order> {
    let (point, rest) = word.split_once('=')?;
    let (action, nth) = rest.split_once('@').unwrap_or((rest, "1"));
    let action = match action {
        "kill" => Action::Kill,
        "stop" => Action::Stop,
        "error" => Action::Error,
        "note" => Action::Note,
        other => Action::Sleep(Duration::from_millis(other.strip_prefix("sleep:")?.parse().ok()?)),
    };
    crate::is_listed(point).then_some(())?;
    let onwards = nth.ends_with('+');
    let nth = nth.trim_end_matches('+').parse().ok().filter(|n| *n > 0)?;
    Some(Order { point: point.to_owned(), action, nth, onwards })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_name_a_point_an_action_and_a_number() {
        let point = crate::POINTS[0].name;
        let order = |action, nth| Some(Order { point: point.to_owned(), action, nth, onwards: false });
        assert_eq!(parse(&format!("{point}=kill")), order(Action::Kill, 1));
        assert_eq!(parse(&format!("{point}=error@3")), order(Action::Error, 3));
        let sleep = Action::Sleep(Duration::from_millis(20));
        assert_eq!(parse(&format!("{point}=sleep:20@2")), order(sleep, 2));
        assert!(parse(&format!("{point}=error@1+")).is_some_and(|order| order.onwards && order.nth == 1));
        for wrong in ["", point, &format!("{point}=die"), &format!("{point}=kill@0"), "no.such.point=kill"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn passings_are_counted_over_processes() {
        let folder = std::env::temp_dir().join(format!("failpoints-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let numbers = [(); 3].map(|()| count(&folder, "a.b").unwrap().0);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(numbers, [1, 2, 3]);
    }
}
