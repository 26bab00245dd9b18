//! Stop signals: the names and numbers of an image's `STOPSIGNAL`, and the CRI's enumeration.

use cofferdam_proto::cri;
use oci_spec::image::ImageConfiguration;

use super::error::SpecError;

const SIGTERM: i32 = 15;
/// As libc hands real-time signals to programs; the kernel's first two belong to the threading library.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Numbers on x86_64 and arm64, which agree.
const NAMES: [(&str, i32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("UNUSED", 31),
];

/// A signal's number from `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
#[must_use]
pub fn parse(text: &str) -> Option<i32> {
    let text = text.trim();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(SIGRTMIN, offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(SIGRTMAX, offset);
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

fn real_time(base: i32, offset: &str) -> Option<i32> {
    // The CRI writes its enumeration's names out: SIGRTMINPLUS3, SIGRTMAXMINUS1.
    let offset = offset.replace("PLUS", "+").replace("MINUS", "-");
    let distance = if offset.is_empty() {
        0
    } else if offset.starts_with(['+', '-']) {
        offset.parse::<i32>().ok()?
    } else {
        return None;
    };
    base.checked_add(distance).filter(|number| (SIGRTMIN..=SIGRTMAX).contains(number))
}

/// The CRI's value for a signal's number; the first name where several have the same number.
#[must_use]
pub fn to_cri(number: i32) -> cri::Signal {
    (1..=SIGRTMAX + 10)
        .filter_map(|value| cri::Signal::try_from(value).ok())
        .find(|signal| parse(signal.as_str_name()) == Some(number))
        .unwrap_or(cri::Signal::RuntimeDefault)
}

/// The signal that asks this container to end: the request's, else the image's, else SIGTERM.
///
/// # Errors
/// When the image's `STOPSIGNAL` or the request's number means no signal.
pub fn stop_signal(config: &cri::ContainerConfig, image: &ImageConfiguration) -> Result<i32, SpecError> {
    let unknown = |value: String| SpecError::Invalid {
        field: "stop signal",
        value,
        why: "neither a name nor a number of a signal of Linux",
    };
    match cri::Signal::try_from(config.stop_signal) {
        Ok(cri::Signal::RuntimeDefault) => {}
        Ok(named) => {
            let name = named.as_str_name();
            return parse(name).ok_or_else(|| unknown(name.to_owned()));
        }
        Err(_) => return Err(unknown(config.stop_signal.to_string())),
    }
    let of_image = image.config().as_ref().and_then(|config| config.stop_signal().as_deref()).unwrap_or("");
    match of_image {
        "" => Ok(SIGTERM),
        text => parse(text).ok_or_else(|| unknown(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time_signals_are_read() {
        let table = [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            (" SIGUSR1 ", Some(10)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMINPLUS15", Some(49)),
            ("SIGRTMAXMINUS14", Some(50)),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN-1", None),
            ("0", None),
            ("65", None),
            ("SIGFOO", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn every_name_of_the_cri_means_a_signal() {
        for value in 1..=65 {
            let signal = cri::Signal::try_from(value).unwrap();
            assert!(parse(signal.as_str_name()).is_some(), "{signal:?}");
        }
    }

    #[test]
    fn the_request_goes_before_the_image() {
        let image: ImageConfiguration = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","config":{"StopSignal":"SIGQUIT"},
                "rootfs":{"type":"layers","diff_ids":[]},"history":[]}"#,
        )
        .unwrap();
        let mut config = cri::ContainerConfig::default();
        assert_eq!(stop_signal(&config, &image).unwrap(), 3);
        config.stop_signal = cri::Signal::Sigusr1 as i32;
        assert_eq!(stop_signal(&config, &image).unwrap(), 10);
        config.stop_signal = 99;
        assert!(stop_signal(&config, &image).is_err());
        config.stop_signal = 0;
        assert_eq!(stop_signal(&config, &ImageConfiguration::default()).unwrap(), SIGTERM);
    }
}
