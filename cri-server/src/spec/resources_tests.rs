//! Tables of limits.

use super::*;
use crate::cgroup::Layout;

fn request() -> cri::LinuxContainerResources {
    cri::LinuxContainerResources::default()
}

#[test]
fn zero_writes_nothing() {
    let built = build(&request(), None, &Features::default()).unwrap();
    assert_eq!(built.cpu(), &Some(LinuxCpu::default()));
    assert_eq!(built.memory(), &Some(LinuxMemory::default()));
    assert_eq!((built.pids(), built.hugepage_limits(), built.unified()), (&None, &None, &None));
}

#[test]
fn cpu_goes_through() {
    let request = cri::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: -1,
        cpu_period: 100_000,
        cpuset_cpus: "0-1".to_owned(),
        cpuset_mems: "0".to_owned(),
        ..request()
    };
    let built = build(&request, Some(77), &Features::default()).unwrap();
    let cpu = built.cpu().as_ref().unwrap();
    assert_eq!((cpu.shares(), cpu.quota(), cpu.period()), (Some(512), Some(-1), Some(100_000)));
    assert_eq!((cpu.cpus().as_deref(), cpu.mems().as_deref()), (Some("0-1"), Some("0")));
    assert_eq!(built.pids().unwrap().limit(), 77);
    assert!(
        build(&cri::LinuxContainerResources { cpu_shares: -5, ..request }, None, &Features::default())
            .is_err()
    );
}

#[test]
fn a_memory_limit_forbids_swap_unless_swap_is_given() {
    let table = [
        (100, 0, true, Ok((Some(100), Some(100)))),
        (100, 300, true, Ok((Some(100), Some(300)))),
        (100, -1, true, Ok((Some(100), Some(-1)))),
        (100, 0, false, Ok((Some(100), None))),
        (100, 300, false, Ok((Some(100), None))),
        (0, 0, true, Ok((None, None))),
        (100, 50, true, Err(())),
        (0, 50, true, Err(())),
        (-1, 0, true, Ok((Some(-1), Some(-1)))),
        (-1, 50, true, Err(())),
        (-2, 0, true, Err(())),
        (100, -2, true, Err(())),
    ];
    for (limit, swap, swap_accounting, expected) in table {
        let request = cri::LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: swap,
            ..request()
        };
        let features = Features { swap_accounting, ..Features::default() };
        let built = build(&request, None, &features).map_err(|_| ());
        let memory = built.map(|built| (built.memory().unwrap().limit(), built.memory().unwrap().swap()));
        assert_eq!(memory, expected, "limit {limit}, swap {swap}");
    }
}

#[test]
fn an_update_changes_only_what_it_names() {
    let features = Features { swap_accounting: true, ..Features::default() };
    let first = cri::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 1000,
        memory_limit_in_bytes: 100,
        cpuset_cpus: "0".to_owned(),
        ..request()
    };
    let before = build(&first, Some(7), &features).unwrap();
    let second = cri::LinuxContainerResources { cpu_quota: -1, memory_limit_in_bytes: 200, ..request() };
    let after = updated(&before, &second, &features).unwrap();
    let cpu = after.cpu().as_ref().unwrap();
    assert_eq!((cpu.shares(), cpu.quota(), cpu.cpus().as_deref()), (Some(512), Some(-1), Some("0")));
    let memory = after.memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(200), Some(200)));
    assert_eq!(after.pids().unwrap().limit(), 7);
    assert_eq!(updated(&before, &request(), &features).unwrap(), before);
}

#[test]
fn huge_pages_and_unified_depend_on_the_node() {
    let mut request = request();
    request.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 }];
    request.unified.insert("memory.high".to_owned(), "1000".to_owned());
    let bare = Features { hugetlb: false, layout: Layout::Legacy, ..Features::default() };
    assert!(matches!(build(&request, None, &bare), Err(SpecError::Unavailable { .. })));
    let huge = cri::LinuxContainerResources { unified: HashMap::new(), ..request.clone() };
    assert_eq!(build(&huge, None, &bare).unwrap().hugepage_limits(), &None);
    let rich = Features { hugetlb: true, layout: Layout::Unified, ..Features::default() };
    let built = build(&request, None, &rich).unwrap();
    assert_eq!(built.hugepage_limits().as_ref().unwrap()[0].page_size(), "2MB");
    assert_eq!(built.unified().as_ref().unwrap()["memory.high"], "1000");
    // The v2 half of a hybrid node: known to our own runtime alone.
    for (hidden, left) in [(true, None), (false, Some(1))] {
        let hybrid = Features { hugetlb: true, hugetlb_is_hidden: hidden, ..Features::default() };
        let built = build(&huge, None, &hybrid.of_other_runtimes()).unwrap();
        assert_eq!(built.hugepage_limits().as_ref().map(Vec::len), left);
    }
    for bad in ["../x", "cgroup.procs", "memory", ".max", ""] {
        let unified = HashMap::from([(bad.to_owned(), "1".to_owned())]);
        let request = cri::LinuxContainerResources { unified, ..request.clone() };
        assert!(matches!(build(&request, None, &rich), Err(SpecError::Invalid { .. })), "{bad:?}");
    }
}

#[test]
fn the_oom_score_is_raised_to_what_the_node_allows() {
    let weak = Features { min_oom_score_adj: 0, ..Features::default() };
    let strong = Features { min_oom_score_adj: -1000, ..Features::default() };
    assert_eq!(oom_score_adj(-998, &weak).unwrap(), 0);
    assert_eq!(oom_score_adj(-998, &strong).unwrap(), -998);
    assert_eq!(oom_score_adj(500, &weak).unwrap(), 500);
    assert!(oom_score_adj(1001, &weak).is_err() && oom_score_adj(-1001, &weak).is_err());
}

#[test]
fn an_update_is_checked_against_what_stays() {
    let features = Features { swap_accounting: true, hugetlb: true, ..Features::default() };
    let huge = |size: &str, limit| cri::HugepageLimit { page_size: size.to_owned(), limit };
    let first = cri::LinuxContainerResources {
        memory_limit_in_bytes: 100,
        hugepage_limits: vec![huge("2MB", 0), huge("1GB", 0)],
        ..request()
    };
    let before = build(&first, None, &features).unwrap();
    let swap = |bytes| cri::LinuxContainerResources { memory_swap_limit_in_bytes: bytes, ..request() };
    let after = updated(&before, &swap(150), &features).unwrap();
    let memory = after.memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(100), Some(150)));
    assert!(updated(&before, &swap(50), &features).is_err(), "below the limit that stays");
    let more = cri::LinuxContainerResources { hugepage_limits: vec![huge("2MB", 4 << 20)], ..request() };
    let after = updated(&before, &more, &features).unwrap();
    let mut limits: Vec<_> =
        after.hugepage_limits().iter().flatten().map(LinuxHugepageLimit::limit).collect();
    limits.sort_unstable();
    assert_eq!(limits, [0, 4 << 20]);
}

#[test]
fn the_status_tells_what_is_in_force() {
    let features = Features { swap_accounting: true, ..Features::default() };
    let asked = cri::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: -7,
        memory_limit_in_bytes: 100,
        cpuset_cpus: "0".to_owned(),
        ..request()
    };
    let mut spec = Spec::default();
    spec.process_mut().get_or_insert_default().set_oom_score_adj(Some(5));
    spec.linux_mut().get_or_insert_default().set_resources(Some(build(&asked, None, &features).unwrap()));
    let expected = cri::LinuxContainerResources {
        cpu_quota: -1,
        memory_swap_limit_in_bytes: 100,
        oom_score_adj: 5,
        ..asked
    };
    assert_eq!(in_effect(&spec), expected);
}
