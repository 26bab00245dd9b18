//! The formats of cgroup files, as pure functions of their texts.

/// One line of a pressure file: the share of time in which tasks waited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureLine {
    /// Percent, over the last 10, 60 and 300 seconds.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    /// Microseconds since the cgroup was made.
    pub total: u64,
}

/// A pressure file: some tasks waited, or all of them did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    pub some: PressureLine,
    pub full: PressureLine,
}

/// A file that holds one number.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A limit; `None` where there is none. v2 says "max", v1 the largest multiple of a page.
pub fn limit(text: &str) -> Option<u64> {
    number(text).filter(|bytes| *bytes < 1 << 62)
}

/// A pressure file.
pub fn pressure(text: &str) -> Option<Pressure> {
    let line = |kind: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let field = |key: &str| {
            rest.split_whitespace()
                .find_map(|field| field.strip_prefix(key)?.strip_prefix('='))
                .map(str::to_owned)
        };
        let average = |key: &str| field(key)?.parse::<f64>().ok();
        Some(PressureLine {
            avg10: average("avg10")?,
            avg60: average("avg60")?,
            avg300: average("avg300")?,
            total: field("total")?.parse().ok()?,
        })
    };
    // Kernels before 5.13 have no "full" line for the processor.
    Some(Pressure { some: line("some")?, full: line("full").unwrap_or_default() })
}

/// Bytes read and written, of v2's `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 …`, over all devices.
pub fn io_v2(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        text.split_whitespace().filter_map(|field| field.strip_prefix(key)?.parse::<u64>().ok()).sum::<u64>()
    };
    (sum("rbytes="), sum("wbytes="))
}

/// Bytes read and written, of v1's `blkio.throttle.io_service_bytes_recursive`: `8:0 Read 1`, over all devices.
pub fn io_v1(text: &str) -> (u64, u64) {
    let sum = |kind: &str| {
        let one = |line: &str| {
            let mut fields = line.split_whitespace();
            let (_, found, bytes) = (fields.next()?, fields.next()?, fields.next()?);
            (found == kind).then(|| bytes.parse::<u64>().ok()).flatten()
        };
        text.lines().filter_map(one).sum::<u64>()
    };
    (sum("Read"), sum("Write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_mean_none_are_none() {
        let table =
            [("1048576\n", Some(1_048_576)), ("max\n", None), ("9223372036854771712\n", None), ("", None)];
        for (text, expected) in table {
            assert_eq!(limit(text), expected, "{text:?}");
        }
    }

    #[test]
    fn pressure_is_read_with_and_without_its_second_line() {
        let some = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12345\n";
        let both = format!("{some}full avg10=0.10 avg60=0.00 avg300=0.00 total=7\n");
        let read = pressure(&both).unwrap();
        assert_eq!((read.some.avg10, read.some.total, read.full.total), (1.5, 12345, 7));
        assert_eq!(pressure(some).unwrap().full, PressureLine::default());
        assert_eq!(pressure("some avg10=x\n"), None);
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn bytes_are_summed_over_devices() {
        let v2 = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=5 dios=0\n8:16 rbytes=1 wbytes=2\n7:0 \n";
        assert_eq!(io_v2(v2), (11, 22));
        let v1 = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:0 Total 30\n8:16 Read 1\nTotal 31\n";
        assert_eq!(io_v1(v1), (11, 20));
        assert_eq!((io_v1(""), io_v2("")), ((0, 0), (0, 0)));
    }
}
