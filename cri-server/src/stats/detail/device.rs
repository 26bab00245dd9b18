//! Names of block devices.

use std::fs;

/// `/dev/vda` for `254:0`; the numbers themselves where the kernel has no name for them.
#[must_use]
pub fn name(number: &str) -> String {
    let uevent = fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| number.to_owned(), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_a_name_is_its_numbers() {
        assert_eq!(name("0:4095"), "0:4095");
        let known = fs::read_dir("/sys/dev/block").into_iter().flatten().flatten().next();
        if let Some(number) = known.and_then(|entry| entry.file_name().into_string().ok()) {
            assert!(name(&number).starts_with("/dev/"), "{number}");
        }
    }
}
