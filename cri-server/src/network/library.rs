//! Stands where the library of `cofferdam-bridge` will be until its calls land: says so, and does nothing.

use cofferdam_netplugin::types::{Attachment, CniError, CniResult, ErrorCode, NetConf, Request};

fn unlinked<T>() -> Result<T, CniError> {
    Err(CniError::new(ErrorCode::NotAvailable, "the bridge's library is not linked into this build"))
}
pub(super) fn add(_: &Request) -> Result<CniResult, CniError> {
    unlinked()
}
pub(super) fn del(_: &Request) -> Result<(), CniError> {
    unlinked()
}
pub(super) fn check(_: &Request) -> Result<(), CniError> {
    unlinked()
}
pub(super) fn gc(_: &NetConf, _: &[Attachment]) -> Result<(), CniError> {
    Ok(())
}
pub(super) fn status(_: &NetConf) -> Result<(), CniError> {
    unlinked()
}
pub(super) fn teardown_if_unused(_: &NetConf) -> Result<bool, CniError> {
    unlinked()
}
