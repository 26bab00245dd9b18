//! Reading the machine's own cgroups: needs root, and removes all that it makes.

use super::sample;
use crate::cgroup::{Hierarchies, remove_all};

#[test]
fn privileged_a_busy_cgroup_is_seen() {
    let hierarchies = Hierarchies::detect().unwrap();
    let name = format!("/cofferdam-test-{}-stats", std::process::id());
    let paths = hierarchies.create(&name).expect("needs root and writable cgroups");
    let enter: String =
        paths.folders().map(|folder| format!("echo $$ > {}/cgroup.procs; ", folder.display())).collect();
    let script = format!(
        "{enter} i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; \
        x=$(head -c 4000000 /dev/zero | tr '\\0' a); echo; sleep 600"
    );
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-ec", &script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The newline says that the work is done.
    let mut byte = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
    // The kernel adds page counts up from its processors every two seconds or so.
    let enough =
        |read: &super::Sample| read.memory.rss > Some(3_000_000) && read.memory.page_faults > Some(0);
    let mut read = sample(&paths);
    for _ in 0..50 {
        if enough(&read) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        read = sample(&paths);
    }
    remove_all(&paths).unwrap();
    child.wait().unwrap();
    assert!(read.cpu.usage_nanos.unwrap() > 1_000_000, "{read:?}");
    assert!(
        read.memory.usage.unwrap() > 0 && read.memory.rss.is_some() && read.memory.page_faults.unwrap() > 0
    );
    assert!(read.pids.unwrap() >= 1);
    let gone = sample(&paths);
    assert_eq!((gone.cpu.usage_nanos, gone.memory.usage, gone.pids), (None, None, None));
}
