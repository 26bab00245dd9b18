//! Where plugins come from: the socket and the folder; and their way from a connection to the order of the others.
//!
//! Registration, configuration, synchronization; then the plugin is asked with the others, until its connection ends.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cofferdam_proto::{nri, ttrpc};
use prost::Message as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::sync::{Semaphore, mpsc};

use super::connection::{Connection, Incoming};
use super::error::HandshakeError;
use super::launch::{self, Installed};
use super::plugin::{Greeting, Identity, Plugin};
use super::{Node, Nri, NriError, Stage};

const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// More plugins than any node has.
const MAX_CONNECTIONS: usize = 64;
/// gRPC's codes.
const INVALID_ARGUMENT: i32 = 3;
const FAILED_PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;

/// What is known of a plugin before it speaks.
struct Expected {
    identity: Option<Identity>,
    config: String,
    process: Option<Child>,
}

impl Nri {
    /// Starts the plugins of the folder, waits until they are synchronized, and listens for others. To be called from
    /// the daemon's main thread, once `node` knows its pods and containers.
    ///
    /// # Errors
    /// When the folder cannot be read or the socket cannot be made.
    pub async fn serve(self: &Arc<Self>, node: Arc<dyn Node>, own_exe: &Path) -> Result<(), NriError> {
        // Served once in a daemon's life.
        let _ = self.node.set(node);
        let starting = launch::installed(&self.config)?.into_iter().map(|plugin| self.start(own_exe, plugin));
        futures::future::join_all(starting).await;
        if !self.config.socket.is_empty() {
            let listener = bind(Path::new(&self.config.socket)).await?;
            let nri = Arc::clone(self);
            self.tracker.spawn(async move {
                let ending = nri.ending.clone();
                ending.run_until_cancelled(nri.listen(listener)).await;
            });
            tracing::info!(socket = self.config.socket, "listening for NRI plugins");
        }
        Ok(())
    }

    async fn start(self: &Arc<Self>, own_exe: &Path, plugin: Installed) {
        let name = plugin.identity.name();
        match launch::start(own_exe, &plugin) {
            Ok((stream, process)) => {
                let Installed { identity, config, .. } = plugin;
                let expected = Expected { identity: Some(identity), config, process: Some(process) };
                self.welcome(stream, expected).await;
            }
            Err(error) => tracing::error!(plugin = name, %error, "the NRI plugin cannot be started"),
        }
    }

    async fn listen(self: &Arc<Self>, listener: UnixListener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // Never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(%error, "NRI socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let nri = Arc::clone(self);
            self.tracker.spawn(async move {
                let expected = Expected { identity: None, config: String::new(), process: None };
                if let Some(plugin) = nri.welcome(stream, expected).await {
                    plugin.closed().cancelled().await;
                }
                drop(place);
            });
        }
    }

    /// Takes a plugin in; what it does wrong is told in the log.
    async fn welcome(self: &Arc<Self>, stream: UnixStream, expected: Expected) -> Option<Arc<Plugin>> {
        let known = expected.identity.as_ref().map(Identity::name);
        let (connection, driver, requests) = Connection::new(stream, &self.ending);
        let closed = connection.closed();
        let name = known.clone();
        self.tracker.spawn(async move {
            if let Err(error) = driver.run().await {
                let error = crate::report::chain(&error);
                tracing::error!(plugin = name, error, "the connection to an NRI plugin failed");
            }
        });
        match self.greet(connection, requests, expected).await {
            Ok(plugin) => {
                tracing::info!(plugin = plugin.name, "NRI plugin connected and synchronized");
                Some(plugin)
            }
            Err(error) => {
                tracing::error!(plugin = known, error = %crate::report::chain(&error), "no NRI plugin");
                closed.cancel();
                None
            }
        }
    }

    async fn greet(
        self: &Arc<Self>,
        connection: Connection,
        mut requests: mpsc::Receiver<Incoming>,
        expected: Expected,
    ) -> Result<Arc<Plugin>, HandshakeError> {
        let registration = self.config.registration();
        let registered = tokio::time::timeout(registration, register(&connection, &mut requests, &expected));
        let identity = registered.await.map_err(|_| HandshakeError::NotRegistered(registration))??;
        let greeting = Greeting {
            config: expected.config,
            registration,
            request: self.config.request(),
            runtime_version: env!("CARGO_PKG_VERSION"),
        };
        let plugin = Arc::new(Plugin::configure(identity, connection, greeting).await?);
        if let Some(process) = expected.process {
            plugin.own(process);
        }
        let (nri, asking) = (Arc::clone(self), Arc::clone(&plugin));
        self.tracker.spawn(async move {
            let closed = asking.closed();
            closed.run_until_cancelled(nri.answer(&asking, requests)).await;
        });
        self.join(&plugin).await?;
        let (nri, leaving) = (Arc::clone(self), Arc::clone(&plugin));
        self.tracker.spawn(async move {
            leaving.closed().cancelled().await;
            nri.forget(&leaving).await;
        });
        Ok(plugin)
    }

    /// Shows the plugin the node and lets it take its place among the others, with no event between the two.
    async fn join(&self, plugin: &Arc<Plugin>) -> Result<(), HandshakeError> {
        // From here on events wait for the order instead of passing by.
        self.active.fetch_add(1, Ordering::AcqRel);
        let none_is_made = self.gate.write().await;
        let mut order = self.order.lock().await;
        let (pods, containers) = match self.node.get() {
            Some(node) => node.snapshot().await,
            None => Default::default(),
        };
        let live = containers.iter().map(|container| (&container.id, Stage::Live));
        let of_pod = |pod: &nri::PodSandbox| if pod.pid == 0 { Stage::Stopped } else { Stage::Live };
        for (id, stage) in pods.iter().map(|pod| (&pod.id, of_pod(pod))).chain(live) {
            order.stages.insert(id.clone(), stage);
        }
        match plugin.synchronize(pods, containers, self.config.registration()).await {
            Ok(updates) => {
                order.plugins.push(Arc::clone(plugin));
                order.plugins.sort_by(|a, b| a.name.cmp(&b.name));
                // A container that is stuck must not hold up the creation of others.
                drop((order, none_is_made));
                self.update_all(&updates).await;
                Ok(())
            }
            Err(error) => {
                if order.plugins.is_empty() {
                    order.stages.clear();
                }
                self.active.fetch_sub(1, Ordering::AcqRel);
                Err(error)
            }
        }
    }

    /// Takes a plugin out whose connection has ended.
    async fn forget(&self, plugin: &Arc<Plugin>) {
        plugin.close();
        let mut order = self.order.lock().await;
        order.plugins.retain(|known| !Arc::ptr_eq(known, plugin));
        if order.plugins.is_empty() {
            order.stages.clear();
        }
        self.active.fetch_sub(1, Ordering::AcqRel);
        tracing::info!(plugin = plugin.name, "the NRI plugin has left");
    }

    /// Answers what the plugin asks, one request after the other.
    async fn answer(&self, plugin: &Plugin, mut requests: mpsc::Receiver<Incoming>) {
        while let Some(Incoming { stream, request }) = requests.recv().await {
            let answer = match (request.service.as_str(), request.method.as_str()) {
                (RUNTIME_SERVICE, "UpdateContainers") => self.updated(plugin, &request.payload).await,
                (RUNTIME_SERVICE, "RegisterPlugin") => {
                    Err(status(FAILED_PRECONDITION, "the plugin is registered already"))
                }
                (service, method) => Err(status(UNIMPLEMENTED, &format!("/{service}/{method}"))),
            };
            plugin.connection().answer(stream, answer).await;
        }
    }

    async fn updated(&self, plugin: &Plugin, payload: &[u8]) -> Result<Vec<u8>, ttrpc::Status> {
        let request = nri::UpdateContainersRequest::decode(payload);
        let request = request.map_err(|error| status(INVALID_ARGUMENT, &error.to_string()))?;
        tracing::info!(
            plugin = plugin.name,
            updates = request.update.len(),
            evictions = request.evict.len(),
            "an NRI plugin changes containers"
        );
        let failed = self.update_all(&request.update).await;
        self.evict_all(&request.evict).await;
        Ok(nri::UpdateContainersResponse { failed }.encode_to_vec())
    }
}

fn status(code: i32, message: &str) -> ttrpc::Status {
    ttrpc::Status { code, message: message.to_owned() }
}

/// Waits for the plugin's first request. One that the daemon started has the name of its file.
async fn register(
    connection: &Connection,
    requests: &mut mpsc::Receiver<Incoming>,
    expected: &Expected,
) -> Result<Identity, HandshakeError> {
    loop {
        let Incoming { stream, request } = requests.recv().await.ok_or(HandshakeError::Ended)?;
        if request.service != RUNTIME_SERVICE || request.method != "RegisterPlugin" {
            let refusal = status(FAILED_PRECONDITION, "the plugin is not registered yet");
            connection.answer(stream, Err(refusal)).await;
            continue;
        }
        let decoded = nri::RegisterPluginRequest::decode(request.payload.as_slice());
        let checked = decoded.map_err(|error| error.to_string()).map(|request| {
            let identity = match &expected.identity {
                Some(identity) => Ok(identity.clone()),
                None => Identity::new(&request.plugin_idx, &request.plugin_name),
            };
            (identity, request.nri_version)
        });
        let identity = match checked {
            Ok((Ok(identity), version)) => {
                tracing::info!(plugin = identity.name(), nri = version, "NRI plugin registers");
                identity
            }
            Ok((Err(error), _)) => {
                connection.answer(stream, Err(status(INVALID_ARGUMENT, &error.to_string()))).await;
                return Err(error);
            }
            Err(text) => {
                connection.answer(stream, Err(status(INVALID_ARGUMENT, &text))).await;
                continue;
            }
        };
        connection.answer(stream, Ok(nri::Empty {}.encode_to_vec())).await;
        return Ok(identity);
    }
}

/// Listens at `path`, for root alone from the first moment on.
async fn bind(path: &Path) -> Result<UnixListener, NriError> {
    let failed = |operation| {
        let path = path.to_owned();
        move |source| NriError::Socket { operation, path, source }
    };
    if let Some(folder) = path.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(folder);
        made.map_err(failed("make the folder of"))?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(failed("take over")(std::io::ErrorKind::AddrInUse.into()));
    }
    // It gets its mode under another name that nobody knows yet.
    let hidden = path.with_extension("new");
    for old in [&hidden, path] {
        match std::fs::remove_file(old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove the old")(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let listener = UnixListener::bind(&hidden).map_err(failed("bind"))?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))
        .map_err(failed("set the mode of"))?;
    std::fs::rename(&hidden, path).map_err(failed("name"))?;
    Ok(listener)
}
