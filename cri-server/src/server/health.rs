//! `grpc.health.v1`: NOT_SERVING while the daemon starts and while it ends, SERVING in between.

use cofferdam_proto::cri::image_service_server::ImageServiceServer;
use cofferdam_proto::cri::runtime_service_server::RuntimeServiceServer;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::rpc::{ImageRpc, Runtime};

/// The daemon as a whole, and the services that a kubelet uses.
const NAMES: [&str; 3] = [
    "",
    <RuntimeServiceServer<Runtime> as NamedService>::NAME,
    <ImageServiceServer<ImageRpc> as NamedService>::NAME,
];

/// Says what the daemon is at.
#[derive(Clone)]
pub(super) struct Health(HealthReporter);

/// The service, which says NOT_SERVING so far.
pub(super) async fn service() -> (Health, Routes) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let health = Health(reporter);
    health.set(ServingStatus::NotServing).await;
    (health, Routes::new(service))
}

impl Health {
    async fn set(&self, status: ServingStatus) {
        for name in NAMES {
            self.0.set_service_status(name, status).await;
        }
    }

    pub(super) async fn serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// The last word: who watches is told and let go, for the daemon would wait for them.
    pub(super) async fn ending(&self) {
        self.set(ServingStatus::NotServing).await;
        for name in NAMES {
            self.0.clone().clear_service_status(name).await;
        }
    }
}
