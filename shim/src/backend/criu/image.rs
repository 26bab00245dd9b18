//! What a restore reads in criu's images, and the one thing that it changes there.
//!
//! An image is a magic number or two, then messages in the wire format of protocol buffers, each after its length. Only
//! the fields that are named here are understood; all others are passed over, or copied as they are. Invariant: an image
//! is hostile input; what is read of it is bounded and no number in it is believed.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::super::Failure;
use super::{failed, refused};

const INVENTORY: &str = "inventory.img";
const INVENTORY_MAGIC: u32 = 0x5831_3116;
const COMMON_MAGIC: u32 = 0x5456_4319;
/// Larger files are not what they should be.
const MOST: u64 = 16 << 20;
const MOST_FILES: usize = 1 << 20;
/// Fields of `inventory_entry`, `task_kobj_ids_entry`, `core_entry` and `task_core_entry`.
const ROOT_IDS: u64 = 3;
const IPC: u64 = 7;
const UTS: u64 = 8;
const TASK: u64 = 3;
const TASK_STATE: u64 = 1;
/// The state of a task that a signal had stopped.
const STOPPED: u64 = 3;

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

struct Field<'a> {
    number: u64,
    value: Value<'a>,
    /// With its tag.
    whole: &'a [u8],
}

/// The fields of a message; the end at the first that is damaged.
struct Fields<'a>(&'a [u8]);

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(at * 7).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let one = field(self.0);
        self.0 = one.as_ref().map_or(&[], |(_, rest)| rest);
        Some(one.map(|(field, _)| field).ok_or_else(|| refused("an image of the checkpoint is damaged")))
    }
}

fn field(bytes: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let (tag, rest) = varint(bytes)?;
    let (value, rest) = match tag & 7 {
        0 => varint(rest).map(|(number, rest)| (Value::Number(number), rest))?,
        1 => (Value::Other, rest.get(8..)?),
        2 => {
            let (length, rest) = varint(rest)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            (Value::Bytes(value), rest)
        }
        5 => (Value::Other, rest.get(4..)?),
        _ => return None,
    };
    let whole = &bytes[..bytes.len() - rest.len()];
    Some((Field { number: tag >> 3, value, whole }, rest))
}

fn number(message: &[u8], wanted: u64) -> Result<Option<u64>, Failure> {
    for field in Fields(message) {
        if let Field { number, value: Value::Number(value), .. } = field?
            && number == wanted
        {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn nested(message: &[u8], wanted: u64) -> Result<Option<&[u8]>, Failure> {
    for field in Fields(message) {
        if let Field { number, value: Value::Bytes(value), .. } = field?
            && number == wanted
        {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed(&format!("open {}", path.display())))?;
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(failed(&format!("read {}", path.display())))?;
    if bytes.len() as u64 > MOST {
        return Err(refused(format!("the image {} is too large", path.display())));
    }
    Ok(bytes)
}

/// What stands before an image's first message, and the message.
fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let magic = match word(0)? {
        INVENTORY_MAGIC => 4,
        COMMON_MAGIC => 8,
        _ => return None,
    };
    let length = usize::try_from(word(magic)?).ok()?;
    Some((&bytes[..magic], bytes.get(magic + 4..)?.get(..length)?))
}

fn damaged(path: &Path) -> Failure {
    refused(format!("the image {} is damaged", path.display()))
}

/// The images `<prefix><number>.img`, by number.
fn numbered(images: &Path, prefix: &str) -> Result<Vec<(i32, PathBuf)>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(images).map_err(failed("list the images"))?.take(MOST_FILES) {
        let entry = entry.map_err(failed("list the images"))?;
        let name = entry.file_name();
        let middle = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(".img"));
        if let Some(number) = middle.and_then(|middle| middle.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Has criu leave the tasks in its own IPC and UTS namespaces: it makes new ones only for tasks that were not in those
/// which it was in itself when it wrote the images, and that is what the inventory tells.
pub fn share_namespaces(images: &Path) -> Result<(), Failure> {
    let path = images.join(INVENTORY);
    let bytes = read(&path)?;
    let (magic, inventory) = first(&bytes).ok_or_else(|| damaged(&path))?;
    let tasks = numbered(images, "ids-")?;
    let Some((_, ids)) = tasks.first() else { return Err(refused("the checkpoint holds no task")) };
    let tasks = read(ids)?;
    let (_, tasks) = first(&tasks).ok_or_else(|| damaged(ids))?;
    let mut changed = Vec::with_capacity(inventory.len() + 16);
    for field in Fields(inventory) {
        let field = field?;
        match field.value {
            Value::Bytes(root) if field.number == ROOT_IDS => {
                let root = with_ids_of(root, tasks)?;
                put_varint(&mut changed, ROOT_IDS << 3 | 2);
                put_varint(&mut changed, root.len() as u64);
                changed.extend(root);
            }
            _ => changed.extend(field.whole),
        }
    }
    let length = u32::try_from(changed.len()).map_err(|_| damaged(&path))?;
    let text = [magic, &length.to_le_bytes(), &changed].concat();
    // A file of its own: what was there may be another's as well.
    let beside = images.join(".inventory.new");
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, &path)).map_err(failed("change the inventory"))
}

fn with_ids_of(root: &[u8], tasks: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::with_capacity(root.len() + 8);
    for field in Fields(root) {
        let field = field?;
        match (field.number, number(tasks, field.number)?) {
            (IPC | UTS, Some(theirs)) => {
                put_varint(&mut out, field.number << 3);
                put_varint(&mut out, theirs);
            }
            _ => out.extend(field.whole),
        }
    }
    Ok(out)
}

/// The tasks, by their numbers in their own namespace, that a signal had stopped when the images were written.
pub fn stopped(images: &Path) -> Result<Vec<i32>, Failure> {
    let mut found = Vec::new();
    for (pid, path) in numbered(images, "core-")? {
        let bytes = read(&path)?;
        let (_, core) = first(&bytes).ok_or_else(|| damaged(&path))?;
        let task = nested(core, TASK)?;
        if let Some(task) = task
            && number(task, TASK_STATE)? == Some(STOPPED)
        {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(magic: &[u32], message: &[u8]) -> Vec<u8> {
        let mut out: Vec<u8> = magic.iter().flat_map(|m| m.to_le_bytes()).collect();
        out.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
        out.extend(message);
        out
    }

    #[test]
    fn the_inventory_takes_over_two_namespaces_and_keeps_all_else() {
        let folder = tempfile::tempdir().unwrap();
        // Version 2; ids with ipc 3, uts 300, mnt 5; one more number and a text.
        let root = [0x08, 1, 0x38, 3, 0x40, 0xac, 2, 0x48, 5];
        let inventory =
            [&[0x08, 2, 0x1a, root.len() as u8][..], &root, &[0x20, 1, 0x6a, 2, b'a', b'b']].concat();
        fs::write(folder.path().join(INVENTORY), image(&[INVENTORY_MAGIC], &inventory)).unwrap();
        let ids = [0x08, 1, 0x38, 11, 0x40, 12, 0x48, 13];
        fs::write(folder.path().join("ids-1.img"), image(&[COMMON_MAGIC, 7], &ids)).unwrap();
        share_namespaces(folder.path()).unwrap();
        let root = [0x08, 1, 0x38, 11, 0x40, 12, 0x48, 5];
        let wanted =
            [&[0x08, 2, 0x1a, root.len() as u8][..], &root, &[0x20, 1, 0x6a, 2, b'a', b'b']].concat();
        assert_eq!(
            fs::read(folder.path().join(INVENTORY)).unwrap(),
            image(&[INVENTORY_MAGIC], &wanted),
            "only the two ids change"
        );
    }

    #[test]
    fn stopped_tasks_are_told_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let core = |state: u8| image(&[COMMON_MAGIC, 7], &[0x08, 1, 0x1a, 4, 0x08, state, 0x10, 0]);
        fs::write(folder.path().join("core-1.img"), core(1)).unwrap();
        fs::write(folder.path().join("core-7.img"), core(3)).unwrap();
        // A thread has no task of its own.
        fs::write(folder.path().join("core-8.img"), image(&[COMMON_MAGIC, 7], &[0x08, 1])).unwrap();
        assert_eq!(stopped(folder.path()).unwrap(), [7]);
    }

    #[test]
    fn damaged_images_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core-1.img");
        for bytes in [
            &[][..],
            &image(&[1], &[]),
            &image(&[COMMON_MAGIC, 7], &[0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            &image(&[COMMON_MAGIC, 7], &[0xff; 12]),
            &image(&[COMMON_MAGIC, 7], &[0x1b]),
            &[0x19, 0x43, 0x56, 0x54, 7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        ] {
            fs::write(&path, bytes).unwrap();
            assert!(stopped(folder.path()).is_err(), "{bytes:?}");
        }
    }
}
