//! The agent: what it answers while the machine is made.

use async_trait::async_trait;
use cofferdam_proto::agent as proto;
use cofferdam_vm::agent::{BUNDLES, VERSION};
use ttrpc::r#async::TtrpcContext;

use crate::Guest;

#[async_trait]
impl proto::Agent for Guest {
    async fn hello(&self, _: &TtrpcContext, _: proto::HelloRequest) -> ttrpc::Result<proto::HelloResponse> {
        let kernel_release = if self.trick == "liar" { "\u{1b}[2J".to_owned() } else { "6.1.0".to_owned() };
        Ok(proto::HelloResponse { version: VERSION, kernel_release, ..Default::default() })
    }

    async fn set_up(&self, _: &TtrpcContext, _: proto::SetUpRequest) -> ttrpc::Result<proto::SetUpResponse> {
        Ok(proto::SetUpResponse::default())
    }

    async fn put_bundle(
        &self,
        _: &TtrpcContext,
        r: proto::PutBundleRequest,
    ) -> ttrpc::Result<proto::PutBundleResponse> {
        let spec = String::from_utf8_lossy(&r.config).into_owned();
        let path = match spec.contains("trick-path") {
            true => "/run/cofferdam/containers/../../../etc/passwd".to_owned(),
            false => format!("{BUNDLES}/{}", r.id),
        };
        self.specs.lock().expect("poisoned").insert(r.id, spec);
        Ok(proto::PutBundleResponse { path, ..Default::default() })
    }

    async fn remove_bundle(
        &self,
        _: &TtrpcContext,
        _: proto::RemoveBundleRequest,
    ) -> ttrpc::Result<proto::RemoveBundleResponse> {
        Ok(proto::RemoveBundleResponse::default())
    }

    async fn power_off(
        &self,
        _: &TtrpcContext,
        _: proto::PowerOffRequest,
    ) -> ttrpc::Result<proto::PowerOffResponse> {
        self.off.notify_one();
        Ok(proto::PowerOffResponse::default())
    }
}
