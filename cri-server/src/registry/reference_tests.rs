//! Tables for the grammar of references and digests.

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn references_are_normalised() {
    let pinned = format!("host:5000/a/b:tag@sha256:{HEX}");
    let untagged = format!("busybox@sha256:{HEX}");
    let untagged_full = format!("docker.io/library/busybox@sha256:{HEX}");
    for (text, expected) in [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/img", "docker.io/user/img:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x:y", "localhost:5000/x:y"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("[::1]/x", "[::1]/x:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("Registry/x", "Registry/x:latest"),
        ("a.b/c__d/e---f/g.h_i", "a.b/c__d/e---f/g.h_i:latest"),
        ("host:5000/a/b:Tag_1.2-x", "host:5000/a/b:Tag_1.2-x"),
        (pinned.as_str(), pinned.as_str()),
        (untagged.as_str(), untagged_full.as_str()),
        // No slash: the part behind the colon is a tag, not a port.
        ("host:5000", "docker.io/library/host:5000"),
    ] {
        let reference = Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(reference.to_string(), expected);
        assert_eq!(Reference::parse(expected).unwrap(), reference, "canonical form reads back");
    }
}

#[test]
fn bad_references_say_what_is_wrong() {
    let long = format!("a.b/{}", "a".repeat(256));
    let long_official = "a".repeat(250);
    let long_tag = format!("x:{}", "t".repeat(129));
    for (text, part) in [
        ("", "empty"),
        ("https://host/x", "leave \"https://\" away"),
        ("Busybox", "lower case"),
        ("user/Img", "lower case"),
        ("host.io/", "repository name is missing"),
        ("a//b", "no part of a repository name"),
        ("/a", "no part of a repository name"),
        ("a/", "no part of a repository name"),
        ("a..b", "no part of a repository name"),
        ("a___b", "no part of a repository name"),
        ("a_.b", "no part of a repository name"),
        ("-a", "no part of a repository name"),
        ("a b", "no part of a repository name"),
        ("../../etc", "is no host name"),
        ("ä", "no part of a repository name"),
        ("-host.io/x", "is no host name"),
        ("host:port/x", "is no host name"),
        ("host:99999/x", "is no host name"),
        ("host:+80/x", "is no host name"),
        ("[::g]:1/x", "is no host name"),
        ("[::1/x", "is no host name"),
        ("x:", "is no tag"),
        ("x:-a", "is no tag"),
        ("x:a/b", "is no host name"),
        ("x:a:b", "is no tag"),
        (long_tag.as_str(), "is no tag"),
        (long.as_str(), "more than 255"),
        (long_official.as_str(), "more than 255"),
        (HEX, "image id"),
        ("x@", "no digest"),
        ("x@sha256:abc", "64 hexadecimal digits"),
        ("x@md5:d41d8cd98f00b204e9800998ecf8427e", "not supported"),
    ] {
        let error = Reference::parse(text).map(|r| r.to_string()).expect_err(text).to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn long_input_is_cut_in_messages() {
    let error = Reference::parse(&"ä".repeat(100_000)).unwrap_err().to_string();
    assert!(error.len() < 2_000, "{}", error.len());
}

#[test]
fn stored_references_are_parsed_again() {
    let reference = Reference::parse("busybox").unwrap();
    let json = serde_json::to_string(&reference).unwrap();
    assert_eq!(json, "\"docker.io/library/busybox:latest\"");
    assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference);
    assert!(serde_json::from_str::<Digest>("\"sha256:../x\"").is_err());
}

#[test]
fn repo_digest_and_repo_tag_forms() {
    let reference = Reference::parse(&format!("a.b/c:t@sha256:{HEX}")).unwrap();
    assert_eq!(reference.without_digest().unwrap().to_string(), "a.b/c:t");
    assert_eq!(reference.with_digest(Digest::sha256(b"")).to_string(), format!("a.b/c@sha256:{HEX}"));
    assert_eq!(reference.name(), "a.b/c");
}

#[test]
fn whatever_is_accepted_reads_back_as_itself() {
    let pieces = [
        "a",
        "B",
        "0",
        ".",
        "_",
        "-",
        "/",
        ":",
        "@",
        "[",
        "]",
        "localhost",
        "sha256:",
        HEX,
        "5000",
        "ä",
        "+",
    ];
    // A fixed sequence (xorshift), so that a failure can be repeated.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut accepted = 0;
    for _ in 0..200_000 {
        let mut text = String::new();
        for _ in 0..=(state % 9) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text.push_str(pieces[(state >> 32) as usize % pieces.len()]);
        }
        if let Ok(reference) = Reference::parse(&text) {
            accepted += 1;
            assert_eq!(Reference::parse(&reference.to_string()).as_ref(), Ok(&reference), "{text:?}");
            assert!(reference.tag().is_some() || reference.digest().is_some());
            assert!(!reference.repository().split('/').any(|part| part.is_empty() || part.starts_with('.')));
        }
    }
    assert!(accepted > 1_000, "{accepted} of the texts were references: too few to say anything");
}
