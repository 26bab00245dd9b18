//! Failures that tests inject at failpoints, as the errors of the modules that hold them. In builds for tests only.

use std::io;

use cofferdam_failpoints::Injected;

use crate::container::ContainerError;
use crate::content::ContentError;
use crate::image::ImageError;
use crate::io::IoError;
use crate::network::NetworkError;
use crate::reconcile::ReconcileError;
use crate::runtime::ExecError;
use crate::runtime::RuntimeError;
use crate::sandbox::SandboxError;
use crate::snapshot::SnapshotError;
use crate::task::TaskError;
use crate::volume::VolumeError;

const OPERATION: &str = "pass";

impl From<Injected> for SandboxError {
    fn from(injected: Injected) -> Self {
        Self::File { operation: OPERATION, path: injected.0.into(), source: injected.into() }
    }
}

impl From<Injected> for ContainerError {
    fn from(injected: Injected) -> Self {
        Self::File { operation: OPERATION, path: injected.0.into(), source: injected.into() }
    }
}

impl From<Injected> for RuntimeError {
    fn from(injected: Injected) -> Self {
        Self::File { operation: OPERATION, path: injected.0.into(), source: injected.into() }
    }
}

impl From<Injected> for TaskError {
    fn from(injected: Injected) -> Self {
        Self::Runtime(injected.into())
    }
}

impl From<Injected> for ExecError {
    fn from(injected: Injected) -> Self {
        Self::Runtime(injected.into())
    }
}

impl From<Injected> for NetworkError {
    fn from(injected: Injected) -> Self {
        Self::File { what: OPERATION, path: injected.0.into(), source: injected.into() }
    }
}

impl From<Injected> for ImageError {
    fn from(injected: Injected) -> Self {
        Self::Io { op: OPERATION, path: injected.0.into(), source: injected.into() }
    }
}

impl From<Injected> for ReconcileError {
    fn from(injected: Injected) -> Self {
        Self::File { operation: OPERATION, path: injected.0.into(), source: injected.into() }
    }
}

impl From<Injected> for VolumeError {
    fn from(injected: Injected) -> Self {
        let place = String::from("anywhere");
        Self::File { place, operation: OPERATION, path: injected.0.into(), source: injected.into() }
    }
}

impl From<Injected> for ContentError {
    fn from(injected: Injected) -> Self {
        Self::Io { op: OPERATION, path: injected.0.into(), source: injected.into() }
    }
}

impl From<Injected> for SnapshotError {
    fn from(injected: Injected) -> Self {
        Self::Io { op: OPERATION, path: injected.0.into(), source: injected.into() }
    }
}

impl From<Injected> for IoError {
    fn from(injected: Injected) -> Self {
        Self::at(OPERATION, injected.0.as_ref(), io::Error::from(injected))
    }
}
