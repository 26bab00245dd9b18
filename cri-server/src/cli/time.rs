//! Times as people write them: RFC 3339 and `10m`, as nanoseconds since the epoch.

use std::time::{SystemTime, UNIX_EPOCH};

const NANOS: i64 = 1_000_000_000;

/// Now.
pub(super) fn now() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(passed.as_nanos()).unwrap_or(i64::MAX)
}

/// A moment in RFC 3339, or so long before `now`: `90s`, `10m`, `2h`, `1d`, `1h30m`.
pub(super) fn moment(text: &str, now: i64) -> Option<i64> {
    rfc3339(text).or_else(|| now.checked_sub(length(text)?))
}

fn length(text: &str) -> Option<i64> {
    let mut total: i64 = 0;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        let count: i64 = number.parse().ok()?;
        total = total.checked_add(count.checked_mul(unit)?.checked_mul(NANOS)?)?;
        number.clear();
    }
    (number.is_empty() && !text.is_empty()).then_some(total)
}

/// A moment such as `2026-11-21T12:00:00.123456789+01:00`.
pub(super) fn rfc3339(text: &str) -> Option<i64> {
    if !text.is_ascii() || text.len() < 20 {
        return None;
    }
    let shape = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
    let separated = shape.iter().all(|(at, sign)| &text[*at..=*at] == *sign);
    if !separated || !matches!(&text[10..11], "T" | "t" | " ") {
        return None;
    }
    let year = number(&text[0..4], 0, 9999)?;
    let month = number(&text[5..7], 1, 12)?;
    let day = number(&text[8..10], 1, 31)?;
    let hour = number(&text[11..13], 0, 23)?;
    let minute = number(&text[14..16], 0, 59)?;
    let second = number(&text[17..19], 0, 60)?;
    let (nanos, zone) = fraction(&text[19..])?;
    let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset(zone)?;
    seconds.checked_mul(NANOS)?.checked_add(nanos)
}

fn number(digits: &str, least: i64, most: i64) -> Option<i64> {
    let all_digits = digits.bytes().all(|b| b.is_ascii_digit());
    all_digits.then(|| digits.parse().ok())?.filter(|n| (least..=most).contains(n))
}

/// The nanoseconds, and what follows them.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((0, text)) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 || digits > 9 {
        return None;
    }
    let value: i64 = rest[..digits].parse().ok()?;
    Some((value * 10_i64.pow(u32::try_from(9 - digits).ok()?), &rest[digits..]))
}

/// Seconds east of Greenwich.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = match zone.bytes().next()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    if zone.len() != 6 || &zone[3..4] != ":" {
        return None;
    }
    Some(sign * (number(&zone[1..3], 0, 23)? * 3_600 + number(&zone[4..6], 0, 59)? * 60))
}

/// Days since the epoch in the Gregorian calendar. Years begin in March here, so that the leap day is their last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_in_rfc_3339() {
        let table = [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:01Z", 951_782_401 * NANOS),
            ("2026-11-21T12:00:00.5+01:00", 1_795_258_800 * NANOS + NANOS / 2),
            ("2026-11-21T12:00:00.000000001Z", 1_795_262_400 * NANOS + 1),
        ];
        for (text, nanos) in table {
            assert_eq!(rfc3339(text), Some(nanos), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_none() {
        let table = [
            "",
            "2026-11-21",
            "2026-13-21T12:00:00Z",
            "2026-11-21T12:00:00",
            "2026-11-21T12:00:00.Z",
            "2026-11-21T12:00:00+0100",
            "2026-11-21T+2:00:00Z",
            "größe-11-21T12:00:00Z",
        ];
        for text in table {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn lengths_count_back_from_now() {
        assert_eq!(moment("90s", 100 * NANOS), Some(10 * NANOS));
        assert_eq!(moment("1h30m", 5400 * NANOS), Some(0));
        for text in ["", "10", "m", "10x", "-5s"] {
            assert_eq!(moment(text, 0), None, "{text}");
        }
    }
}
