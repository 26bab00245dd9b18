//! CNI's commands, one file each.

mod add;
mod check;
mod del;
mod gc;
mod status;

pub use add::add;
pub use check::check;
pub use del::del;
pub use gc::{gc, teardown_if_unused};
pub use status::status;
