//! The module on the machine's own cgroups: needs root, and removes all that it makes.

use std::fs;
use std::process::{Child, Command};

use super::{CgroupPaths, Hierarchies, kill_all, oom_kill_count, processes, remove_all};

struct Scratch {
    paths: CgroupPaths,
    children: Vec<Child>,
}

impl Scratch {
    fn new(name: &str) -> Self {
        let hierarchies = Hierarchies::detect().unwrap();
        let parent = format!("/cofferdam-test-{}-{name}/pod", std::process::id());
        let paths = hierarchies.create(&parent).expect("needs root and writable cgroups");
        Self { paths, children: Vec::new() }
    }

    /// A shell in this cgroup, in every hierarchy.
    fn run(&mut self, script: &str) -> u32 {
        // The shell moves itself before it goes on, so that all its children are in.
        let enter: String = self
            .paths
            .folders()
            .map(|folder| format!("echo $$ > {}/cgroup.procs; ", folder.display()))
            .collect();
        let child = Command::new("/bin/sh").arg("-ec").arg(format!("{enter}{script}")).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    fn wait_for(&self, count: usize) -> Vec<i32> {
        for _ in 0..500 {
            let pids = processes(&self.paths).unwrap();
            if pids.len() == count {
                return pids;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("not {count} processes: {:?}", processes(&self.paths));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = kill_all(&self.paths);
        for child in &mut self.children {
            let _ = child.wait();
        }
        let _ = remove_all(&self.paths);
        for folder in self.paths.folders() {
            let _ = folder.parent().map(fs::remove_dir);
        }
    }
}

#[test]
fn privileged_everything_in_a_cgroup_is_killed_and_removed() {
    let mut scratch = Scratch::new("kill");
    let memory = scratch.paths.of("memory").unwrap().join("child");
    fs::create_dir(&memory).unwrap();
    // One of them deafens itself to everything that can be ignored, one lives in a child cgroup.
    scratch.run("trap '' TERM INT HUP; sleep 600 & setsid sleep 600 & wait");
    let pids = scratch.wait_for(3);
    fs::write(memory.join("cgroup.procs"), pids[2].to_string()).unwrap();
    kill_all(&scratch.paths).unwrap();
    scratch.children[0].wait().unwrap();
    remove_all(&scratch.paths).unwrap();
    assert!(!scratch.paths.exist());
    remove_all(&scratch.paths).unwrap();
}

#[test]
fn privileged_removing_kills_first() {
    let mut scratch = Scratch::new("remove");
    scratch.run("exec sleep 600");
    scratch.wait_for(1);
    remove_all(&scratch.paths).unwrap();
    assert!(!scratch.paths.exist());
}

#[test]
fn privileged_an_out_of_memory_kill_is_counted() {
    let mut scratch = Scratch::new("oom");
    assert_eq!(oom_kill_count(&scratch.paths), Some(0));
    let folder = scratch.paths.of("memory").unwrap();
    let limit = if scratch.paths.controllers.contains_key("memory") {
        ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"].as_slice()
    } else {
        ["memory.max", "memory.swap.max"].as_slice()
    };
    for (file, value) in limit.iter().zip(["8388608", if limit[0] == "memory.max" { "0" } else { "8388608" }])
    {
        fs::write(folder.join(file), value).unwrap();
    }
    scratch.run("exec tail /dev/zero");
    let status = scratch.children[0].wait().unwrap();
    assert!(!status.success());
    assert_eq!(oom_kill_count(&scratch.paths), Some(1));
}
