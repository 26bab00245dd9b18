//! Limits of input and output to block devices, in both worlds.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::Change;

/// The names of one throttle in v1 and v2, and the devices that it is for.
type Throttle<'a> = (&'static str, &'static str, &'a Option<Vec<LinuxThrottleDevice>>);

fn throttles(io: &LinuxBlockIo) -> [Throttle<'_>; 4] {
    [
        ("blkio.throttle.read_bps_device", "rbps", io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", "wbps", io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", "riops", io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", "wiops", io.throttle_write_iops_device()),
    ]
}

/// A weight file of the scheduler that the node has: the first that is there, or the first, for the error to name.
fn first<'a>(folder: &Path, files: [&'a str; 2]) -> &'a str {
    if folder.join(files[1]).exists() && !folder.join(files[0]).exists() { files[1] } else { files[0] }
}

/// What takes a value back: what the file holds for this key, its line as a whole, or else what stands for nothing.
fn undo(folder: &Path, file: &str, key: &str, none: impl FnOnce() -> Option<String>) -> Option<String> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(key));
    line.map(str::to_owned).or_else(none)
}

pub(super) fn legacy(folder: &Path, io: &LinuxBlockIo) -> Vec<Change> {
    let mut changes = Vec::new();
    let weight = first(folder, ["blkio.weight", "blkio.bfq.weight"]);
    changes.extend(io.weight().filter(|n| *n != 0).map(|n| Change::new(folder, weight, n)));
    let leaf = io.leaf_weight().filter(|n| *n != 0);
    changes.extend(leaf.map(|n| Change::new(folder, "blkio.leaf_weight", n)));
    for device in io.weight_device().iter().flatten() {
        let of = |file: &str, weight: u16| {
            let device = format!("{}:{}", device.major(), device.minor());
            let undo = undo(folder, file, &device, || Some(format!("{device} 0")));
            Change { undo, ..Change::new(folder, file, format!("{device} {weight}")) }
        };
        let file = first(folder, ["blkio.weight_device", "blkio.bfq.weight_device"]);
        changes.extend(device.weight().map(|n| of(file, n)));
        changes.extend(device.leaf_weight().map(|n| of("blkio.leaf_weight_device", n)));
    }
    for (file, _, devices) in throttles(io) {
        for device in devices.iter().flatten() {
            let number = format!("{}:{}", device.major(), device.minor());
            let undo = undo(folder, file, &number, || Some(format!("{number} 0")));
            let text = format!("{number} {}", device.rate());
            changes.push(Change { undo, ..Change::new(folder, file, text) });
        }
    }
    changes
}

pub(super) fn unified(folder: &Path, io: &LinuxBlockIo) -> Vec<Change> {
    let mut changes = Vec::new();
    let file = first(folder, ["io.bfq.weight", "io.weight"]);
    let scaled = |n: u16| if file == "io.weight" { weight(n) } else { u64::from(n) };
    let default = undo(folder, file, "default", || None);
    let weight = io.weight().filter(|n| *n != 0).map(|n| Change::new(folder, file, scaled(n)));
    changes.extend(weight.map(|change| Change { undo: default, ..change }));
    for device in io.weight_device().iter().flatten() {
        let number = format!("{}:{}", device.major(), device.minor());
        let undo = undo(folder, file, &number, || Some(format!("{number} default")));
        let of = |n: u16| Change::new(folder, file, format!("{number} {}", scaled(n)));
        changes.extend(device.weight().map(|n| Change { undo, ..of(n) }));
    }
    for (_, key, devices) in throttles(io) {
        for device in devices.iter().flatten() {
            let number = format!("{}:{}", device.major(), device.minor());
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            let undo = undo(folder, "io.max", &number, || Some(format!("{number} {key}=max")));
            changes.push(Change { undo, ..Change::new(folder, "io.max", format!("{number} {key}={rate}")) });
        }
    }
    changes
}

/// The weights of v1, 10 to 1000, onto those of v2, 1 to 10000, in proportion.
fn weight(n: u16) -> u64 {
    1 + (u64::from(n.clamp(10, 1000)) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(changes: &[Change]) -> Vec<(String, &str)> {
        let name = |c: &Change| c.path.file_name().unwrap().to_string_lossy().into_owned();
        changes.iter().map(|c| (name(c), c.text.as_str())).collect()
    }

    #[test]
    fn what_a_file_held_is_put_back_line_by_line() {
        let json = r#"{"weight":500, "weightDevice":[{"major":8,"minor":0,"weight":20},{"major":8,"minor":16,"weight":30}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000},{"major":8,"minor":16,"rate":1}]}"#;
        let io: LinuxBlockIo = serde_json::from_str(json).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("io.weight"), "default 77\n8:0 200\n").unwrap();
        fs::write(folder.path().join("io.max"), "8:0 rbps=5 wbps=max riops=max wiops=7\n").unwrap();
        let undone = |changes: Vec<Change>| changes.into_iter().map(|c| c.undo.unwrap()).collect::<Vec<_>>();
        let v2 = undone(unified(folder.path(), &io));
        let limits = "8:0 rbps=5 wbps=max riops=max wiops=7";
        assert_eq!(v2, ["default 77", "8:0 200", "8:16 default", limits, "8:16 rbps=max"]);
        fs::write(folder.path().join("blkio.throttle.read_bps_device"), "8:0 9\n").unwrap();
        let v1 = undone(legacy(folder.path(), &io).split_off(1));
        assert_eq!(v1, ["8:0 0", "8:16 0", "8:0 9", "8:16 0"]);
    }

    #[test]
    fn throttles_are_named_for_their_world() {
        let json = r#"{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":0}], "weight": 1000}"#;
        let io: LinuxBlockIo = serde_json::from_str(json).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let v1 = legacy(folder.path(), &io);
        let expected = [
            ("blkio.weight".to_owned(), "1000"),
            ("blkio.throttle.read_bps_device".to_owned(), "8:0 1000"),
            ("blkio.throttle.write_iops_device".to_owned(), "8:0 0"),
        ];
        assert_eq!(texts(&v1), expected);
        std::fs::write(folder.path().join("io.weight"), "").unwrap();
        let v2 = unified(folder.path(), &io);
        let expected = [
            ("io.weight".to_owned(), "10000"),
            ("io.max".to_owned(), "8:0 rbps=1000"),
            ("io.max".to_owned(), "8:0 wiops=max"),
        ];
        assert_eq!(texts(&v2), expected);
    }
}
