//! The container code: what it answers for containers whose command names a trick.

use std::future::pending;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest,
    KillRequest, StartRequest, StartResponse, StatsRequest, StatsResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::io::AsyncWriteExt;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use crate::Guest;

/// What a flood consists of, in MiB.
const FLOOD: usize = 64;

impl Guest {
    /// Whether the container of this id was told to play the trick.
    fn plays(&self, id: &str, trick: &str) -> bool {
        let specs = self.specs.lock().expect("poisoned");
        specs.get(id).is_some_and(|spec| spec.contains(&format!("trick-{trick}")))
    }

    fn killed(&self, id: &str) -> bool {
        self.specs.lock().expect("poisoned").contains_key(&format!("{id} killed"))
    }

    async fn flood(&self) {
        // The newest stream of a container's is its stderr, the one before its stdout: both are flooded.
        let streams: Vec<_> = self.outputs.lock().expect("poisoned").drain().collect();
        for (_, mut stream) in streams {
            let part = vec![0x1b; 1 << 20];
            for _ in 0..FLOOD {
                if stream.write_all(&part).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn refusal() -> ttrpc::Error {
    let words = "\u{1b}[2J\r\nno \u{202e}".repeat(100_000);
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, words))
}

#[async_trait]
impl Task for Guest {
    async fn create(&self, _: &TtrpcContext, r: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        if self.plays(&r.id, "refuse") {
            return Err(refusal());
        }
        if self.plays(&r.id, "mute") {
            pending::<()>().await;
        }
        let pid = if self.plays(&r.id, "absurd") { u32::MAX } else { 42 };
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, r: StartRequest) -> ttrpc::Result<StartResponse> {
        if self.plays(&r.id, "flood") && r.exec_id.is_empty() {
            self.flood().await;
        }
        Ok(StartResponse { pid: 1, ..Default::default() })
    }

    async fn exec(&self, _: &TtrpcContext, r: ExecProcessRequest) -> ttrpc::Result<Empty> {
        if self.plays(&r.id, "deaf") {
            pending::<()>().await;
        }
        Err(refusal())
    }

    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let mut answer = WaitResponse::new();
        if self.plays(&r.id, "absurd") {
            answer.exit_status = u32::MAX;
            let far = Timestamp { seconds: i64::MAX, nanos: i32::MIN, ..Default::default() };
            answer.exited_at = MessageField::some(far);
            return Ok(answer);
        }
        if self.plays(&r.id, "hasty") {
            answer.exit_status = 3;
            return Ok(answer);
        }
        if self.plays(&r.id, "lost") {
            return Err(refusal());
        }
        while !self.killed(&r.id) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        answer.exit_status = 137;
        Ok(answer)
    }

    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> ttrpc::Result<Empty> {
        if self.plays(&r.id, "deaf") {
            pending::<()>().await;
        }
        if !self.plays(&r.id, "undying") {
            self.specs.lock().expect("poisoned").insert(format!("{} killed", r.id), String::new());
        }
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, _: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        Ok(DeleteResponse { pid: u32::MAX, exit_status: u32::MAX, ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, _: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let stats = Any { type_url: "../".repeat(1000), value: vec![0xff; 1 << 20], ..Default::default() };
        Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }
}
