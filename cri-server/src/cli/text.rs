//! Values in the words of people: short ids, sizes, ages.

use std::time::Duration;

/// Characters of an id that tables show.
const SHORT: usize = 13;

/// An id's first characters, without its algorithm.
pub(super) fn short_id(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(SHORT).collect()
}

/// Bytes with a decimal unit, as registries count: `4.3MB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.95 would be shown as 1000.0 of the smaller unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}B"),
        _ if value >= 99.95 => format!("{value:.0}{}", UNITS[unit]),
        _ => format!("{value:.1}{}", UNITS[unit]),
    }
}

/// A length of time by its largest unit: `2 minutes`.
pub(super) fn duration(duration: Duration) -> String {
    const UNITS: [(u64, &str); 5] =
        [(31_536_000, "year"), (2_592_000, "month"), (86_400, "day"), (3_600, "hour"), (60, "minute")];
    let seconds = duration.as_secs();
    let unit = UNITS.iter().find(|(length, _)| seconds >= *length);
    let (count, name) = unit.map_or((seconds, "second"), |(length, name)| (seconds / length, name));
    if count == 1 { format!("1 {name}") } else { format!("{count} {name}s") }
}

/// How long ago `then` was, both in nanoseconds since the epoch; 0 is never.
pub(super) fn age(then: i64, now: i64) -> String {
    if then <= 0 {
        return "never".to_owned();
    }
    let passed = u64::try_from(now.saturating_sub(then)).unwrap_or(0);
    match Duration::from_nanos(passed) {
        passed if passed.as_secs() == 0 => "just now".to_owned(),
        passed => format!("{} ago", duration(passed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_or_three_digits() {
        let table = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0kB"),
            (4_300_000, "4.3MB"),
            (99_940_000, "99.9MB"),
            (131_400_000, "131MB"),
            (999_999_999, "1.0GB"),
            (2_000_000_000_000_000, "2000TB"),
        ];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn ages_are_in_their_largest_unit() {
        const SECOND: i64 = 1_000_000_000;
        let now = 2_000_000_000 * SECOND;
        let table = [
            (0, "just now"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (125, "2 minutes ago"),
            (7300, "2 hours ago"),
            (90_000, "1 day ago"),
            (6_000_000, "2 months ago"),
        ];
        for (seconds, text) in table {
            assert_eq!(age(now - seconds * SECOND, now), text);
        }
        assert_eq!(age(0, now), "never");
        assert_eq!(age(now + SECOND, now), "just now");
    }

    #[test]
    fn short_ids_lose_their_algorithm() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789abc");
        assert_eq!(short_id("0123"), "0123");
    }
}
