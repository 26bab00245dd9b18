//! The device rules of a container as a program of the kernel's virtual machine, which cgroup v2 asks at each access.
//!
//! Pure: rules in, instructions out. Invariant: each kind of access (make a node, read, write) is decided by the last
//! rule that covers the device and that kind, and what no rule covers is refused. So a rule that denies writing also
//! refuses to open for both, which a comparison of whole requests would let through.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// One instruction, laid out as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// The target register in the low half, the source in the high one.
    registers: u8,
    jump: i16,
    value: i32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuleError {
    #[error("the device rule's access {0:?} is not made of the letters r, w and m")]
    Access(String),
    #[error("{0} is no number of a device")]
    Number(i64),
}

// The classes and operations of the instructions that are used here. See linux/bpf.h.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_VALUE: u8 = 0xb7;
const AND_VALUE: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

// Who holds what. The kernel passes its request in the second; the first is the answer.
const ANSWER: u8 = 0;
const REQUEST: u8 = 1;
const TYPE: u8 = 2;
/// The kinds of access that no rule has decided yet.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const EVERYTHING: i32 = MAKE | READ | WRITE;

/// What every OCI runtime allows on top of the rules it was given, as (major, minor) of character devices.
const ALWAYS: [(i32, Option<i32>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

/// A rule in the kernel's numbers; `None` stands for any.
#[derive(Debug, Clone, Copy)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    fn allowing(kind: i32, (major, minor): (Option<i32>, Option<i32>), access: i32) -> Self {
        Rule { allow: true, kind: Some(kind), major, minor, access }
    }

    /// `None` for what the devices cgroup does not govern.
    fn read(rule: &LinuxDeviceCgroup) -> Result<Option<Self>, RuleError> {
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(BLOCK),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
            LinuxDeviceType::P => return Ok(None),
        };
        // A rule for all types is one for all devices, whatever numbers stand beside it.
        let number = |n: Option<i64>| if kind.is_none() { Ok(None) } else { number(n) };
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        let access = access(rule.access().as_deref().unwrap_or_default())?;
        Ok(Some(Rule { allow: rule.allow(), kind, major, minor, access }))
    }

    fn covers_every_device(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none()
    }
}

fn number(number: Option<i64>) -> Result<Option<i32>, RuleError> {
    match number {
        None | Some(-1) => Ok(None),
        Some(n) => match i32::try_from(n) {
            Ok(small) if small >= 0 => Ok(Some(small)),
            _ => Err(RuleError::Number(n)),
        },
    }
}

fn access(letters: &str) -> Result<i32, RuleError> {
    if letters.is_empty() {
        return Ok(EVERYTHING);
    }
    letters.chars().try_fold(0, |bits, letter| match letter {
        'm' => Ok(bits | MAKE),
        'r' => Ok(bits | READ),
        'w' => Ok(bits | WRITE),
        _ => Err(RuleError::Access(letters.to_owned())),
    })
}

/// The program for these rules; `None` when they allow everything.
pub fn program(rules: &[LinuxDeviceCgroup]) -> Result<Option<Vec<Instruction>>, RuleError> {
    let mut all = Vec::with_capacity(rules.len() + ALWAYS.len() + 2);
    for rule in rules {
        all.extend(Rule::read(rule)?);
    }
    for kind in [CHARACTER, BLOCK] {
        all.push(Rule::allowing(kind, (None, None), MAKE));
    }
    let always = ALWAYS.map(|(major, minor)| Rule::allowing(CHARACTER, (Some(major), minor), EVERYTHING));
    all.extend(always);
    // Rules before one that decides everything say nothing any more.
    let decisive = all.iter().rposition(|r| r.covers_every_device() && r.access == EVERYTHING);
    let all = &all[decisive.unwrap_or_default()..];
    if decisive.is_some() && all.iter().all(|rule| rule.allow) {
        return Ok(None);
    }
    Ok(Some(assemble(all)))
}

fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        // The first word holds the type in its low half and the kinds of access in its high one.
        load(TYPE, 0),
        register(MOVE, OPEN, TYPE),
        value(AND_VALUE, TYPE, 0xffff),
        value(SHIFT_RIGHT, OPEN, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        code.extend(one_rule(rule));
    }
    code.extend(answer(false));
    code
}

/// Falls through to the next rule when this one does not settle the request.
fn one_rule(rule: &Rule) -> Vec<Instruction> {
    let mut effect = if rule.allow {
        vec![value(AND_VALUE, OPEN, !rule.access), jump(JUMP_NOT_EQUAL, OPEN, 0, 2)]
    } else {
        let picked = [register(MOVE, ANSWER, OPEN), value(AND_VALUE, ANSWER, rule.access)];
        picked.into_iter().chain([jump(JUMP_EQUAL, ANSWER, 0, 2)]).collect()
    };
    effect.extend(answer(rule.allow));
    let asked = [(TYPE, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    let asked: Vec<(u8, i32)> = asked.into_iter().filter_map(|(r, wanted)| Some((r, wanted?))).collect();
    let mut code = Vec::with_capacity(asked.len() + effect.len());
    for (position, (held_in, wanted)) in asked.iter().enumerate() {
        let to_next_rule = asked.len() - position - 1 + effect.len();
        // Never more than eight, so that it always fits.
        let distance = i16::try_from(to_next_rule).unwrap_or_default();
        code.push(jump(JUMP_NOT_EQUAL, *held_in, *wanted, distance));
    }
    code.extend(effect);
    code
}

fn answer(allow: bool) -> [Instruction; 2] {
    [value(MOVE_VALUE, ANSWER, i32::from(allow)), value(EXIT, 0, 0)]
}

fn load(target: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD_WORD, registers: target | (REQUEST << 4), jump: offset, value: 0 }
}

fn register(code: u8, target: u8, source: u8) -> Instruction {
    Instruction { code, registers: target | (source << 4), jump: 0, value: 0 }
}

fn value(code: u8, target: u8, value: i32) -> Instruction {
    Instruction { code, registers: target, jump: 0, value }
}

fn jump(code: u8, compared: u8, with: i32, distance: i16) -> Instruction {
    Instruction { code, registers: compared, jump: distance, value: with }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, for the instructions that are used here.
    fn run(program: &[Instruction], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let first = u32::try_from(kind | (access << 16)).unwrap();
        let request = [first, major, minor];
        let mut held = [0_u64; 11];
        let mut at = 0;
        loop {
            let Instruction { code, registers, jump, value } = program[at];
            let (target, source) = (usize::from(registers & 15), usize::from(registers >> 4));
            let extended = i64::from(value).cast_unsigned();
            at += 1;
            let jumps = match code {
                LOAD_WORD => {
                    assert_eq!(source, usize::from(REQUEST));
                    held[target] = u64::from(request[usize::try_from(jump).unwrap() / 4]);
                    continue;
                }
                MOVE => (held[target] = held[source], false).1,
                MOVE_VALUE => (held[target] = extended, false).1,
                AND_VALUE => (held[target] &= extended, false).1,
                SHIFT_RIGHT => (held[target] >>= extended, false).1,
                JUMP_EQUAL => held[target] == extended,
                JUMP_NOT_EQUAL => held[target] != extended,
                EXIT => return held[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            };
            if jumps {
                at += usize::try_from(jump).unwrap();
            }
        }
    }

    /// The rule in words: each kind of access by itself, the last rule that covers it decides.
    fn expected(rules: &[LinuxDeviceCgroup], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let fits = |wanted: Option<i32>, is: u32| wanted.is_none_or(|w| u32::try_from(w) == Ok(is));
        let always = |bit: i32| {
            let listed = ALWAYS.iter().any(|(a, b)| fits(Some(*a), major) && fits(*b, minor));
            bit == MAKE || kind == CHARACTER && listed
        };
        [MAKE, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            let read = rules.iter().rev().filter_map(|rule| Rule::read(rule).unwrap());
            let mut deciding = read.filter(|rule| {
                let device = fits(rule.major, major) && fits(rule.minor, minor);
                rule.access & bit != 0 && device && rule.kind.is_none_or(|k| k == kind)
            });
            always(bit) || deciding.next().is_some_and(|rule| rule.allow)
        })
    }

    fn rule(allow: bool, typ: &str, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
        let json = serde_json::json!({"allow": allow, "type": typ, "major": major, "minor": minor, "access": access});
        serde_json::from_value(json).unwrap()
    }

    fn sets() -> Vec<Vec<LinuxDeviceCgroup>> {
        let nothing = || rule(false, "a", -1, -1, "rwm");
        vec![
            vec![],
            vec![nothing()],
            vec![nothing(), rule(true, "b", 8, 0, "r"), rule(true, "c", 10, -1, "rw")],
            vec![nothing(), rule(true, "b", 8, 0, "rwm"), rule(false, "b", 8, 0, "w")],
            vec![nothing(), rule(true, "b", 8, 0, "r"), rule(true, "b", 8, -1, "w")],
            vec![rule(true, "a", -1, -1, "rwm"), rule(false, "b", 8, 0, "rwm"), rule(false, "c", -1, 1, "w")],
            vec![rule(true, "a", -1, -1, "rwm"), nothing(), rule(true, "b", -1, 1, "")],
            vec![rule(true, "b", 8, -1, "rwm"), rule(false, "a", 7, 7, "w"), rule(true, "b", 8, 1, "rw")],
        ]
    }

    #[test]
    fn each_kind_of_access_is_decided_by_the_last_rule_that_covers_it() {
        for rules in sets() {
            let program = program(&rules).unwrap().unwrap();
            for kind in [BLOCK, CHARACTER] {
                for access in 1..=EVERYTHING {
                    for (major, minor) in [(8, 0), (8, 1), (10, 1), (10, 7), (1, 3), (1, 1), (136, 9), (5, 2)]
                    {
                        assert_eq!(
                            run(&program, kind, access, major, minor),
                            expected(&rules, kind, access, major, minor),
                            "{rules:?}: {kind} {access} {major}:{minor}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_disk_is_refused_and_null_is_not() {
        let program = program(&[rule(false, "a", -1, -1, "rwm")]).unwrap().unwrap();
        assert!(!run(&program, BLOCK, READ, 8, 0));
        assert!(!run(&program, BLOCK, READ | WRITE, 8, 0));
        assert!(run(&program, BLOCK, MAKE, 8, 0), "the node alone gives nothing");
        assert!(run(&program, CHARACTER, READ | WRITE, 1, 3));
        assert!(!run(&program, CHARACTER, READ, 1, 1), "the memory of the node");
    }

    #[test]
    fn a_denied_kind_also_refuses_the_request_for_more() {
        let rules =
            [rule(false, "a", -1, -1, "rwm"), rule(true, "b", 8, 0, "rw"), rule(false, "b", 8, 0, "w")];
        let program = program(&rules).unwrap().unwrap();
        assert!(run(&program, BLOCK, READ, 8, 0));
        assert!(!run(&program, BLOCK, READ | WRITE, 8, 0));
    }

    #[test]
    fn rules_that_allow_everything_need_no_program() {
        let everything = || rule(true, "a", -1, -1, "rwm");
        assert_eq!(program(&[everything()]), Ok(None));
        assert_eq!(program(&[rule(false, "a", -1, -1, "rwm"), everything()]), Ok(None));
        assert!(program(&[everything(), rule(false, "b", 8, 0, "w")]).unwrap().is_some());
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(program(&[rule(true, "c", 1, 3, "rx")]), Err(RuleError::Access("rx".into())));
        assert_eq!(program(&[rule(true, "c", -2, 3, "r")]), Err(RuleError::Number(-2)));
        assert_eq!(program(&[rule(true, "c", 1, 1 << 40, "r")]), Err(RuleError::Number(1 << 40)));
    }
}
