//! Faults made on purpose: everything killed, records altered, folders gone.

use std::path::Path;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;

use super::{Node, leak};

type Rows = TableDefinition<'static, &'static str, &'static [u8]>;

/// The daemon's records while it does not run.
pub struct Records(Database);

impl Records {
    pub fn open(node: &Node) -> Self {
        assert!(node.daemon_pid().is_none(), "the daemon holds its records");
        let database = Database::open(node.dir().join("root/metadata.redb"));
        Self(database.expect("cannot open the records"))
    }

    fn table(name: &'static str) -> Rows {
        TableDefinition::new(name)
    }

    pub fn keys(&self, table: &'static str) -> Vec<String> {
        let transaction = self.0.begin_read().expect("no transaction");
        let rows = transaction.open_table(Self::table(table)).expect("no such table");
        rows.iter().expect("unreadable").flatten().map(|(key, _)| key.value().to_owned()).collect()
    }

    fn get(&self, table: &'static str, key: &str) -> Value {
        let transaction = self.0.begin_read().expect("no transaction");
        let rows = transaction.open_table(Self::table(table)).expect("no such table");
        let row = rows.get(key).expect("unreadable").expect("no such record");
        serde_json::from_slice(row.value()).expect("no JSON")
    }

    /// Writes any bytes as a record.
    pub fn put(&self, table: &'static str, key: &str, bytes: &[u8]) {
        let transaction = self.0.begin_write().expect("no transaction");
        let mut rows = transaction.open_table(Self::table(table)).expect("no such table");
        rows.insert(key, bytes).expect("cannot write");
        drop(rows);
        transaction.commit().expect("cannot commit");
    }

    pub fn remove(&self, table: &'static str, key: &str) {
        let transaction = self.0.begin_write().expect("no transaction");
        let mut rows = transaction.open_table(Self::table(table)).expect("no such table");
        rows.remove(key).expect("cannot write").expect("no such record");
        drop(rows);
        transaction.commit().expect("cannot commit");
    }

    /// Makes the next daemon believe that the kernel was started anew since the last one.
    pub fn of_another_boot(&self) {
        let mut run = self.get("node", "run");
        run["record"]["boot"] = "00000000-1111-2222-3333-444444444444".into();
        self.put("node", "run", run.to_string().as_bytes());
    }
}

/// Kills the daemon and every process of its pods, shims included.
pub async fn kill_everything(node: &mut Node) {
    node.kill9();
    for _ in 0..200 {
        let left = leak::processes(node.dir(), &node.mark());
        for (pid, _) in &left {
            // It may be gone by now.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        if left.is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("processes do not die: {:?}", leak::processes(node.dir(), &node.mark()));
}

/// Empties the state folder as a reboot does, mounts and all.
pub fn lose_state(node: &Node) {
    let state = node.dir().join("state");
    for point in leak::mounts(&state).iter().rev() {
        umount2(Path::new(point), MntFlags::MNT_DETACH).expect("cannot unmount");
    }
    std::fs::remove_dir_all(&state).expect("cannot remove the state folder");
}
