//! Catches what libcontainer logs at level error: its error values lose their causes on the way between its processes,
//! its log keeps them.

use std::fmt::{Debug, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::Reporter;
use crate::wire::Report;

struct ErrorLog(Reporter);

/// From now on every error event of this process and its forks becomes a [`Report::Detail`].
pub fn report_errors_to(reporter: Reporter) {
    // Fails only when a subscriber is set already, and this is the first thing the child does.
    drop(tracing::subscriber::set_global_default(ErrorLog(reporter)));
}

#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" if self.0.is_empty() => write!(self.0, "{value:?}"),
            "message" => {
                let fields = std::mem::take(&mut self.0);
                write!(self.0, "{value:?} ({fields})")
            }
            name if self.0.is_empty() => write!(self.0, "{name}: {value:?}"),
            name => write!(self.0, ", {name}: {value:?}"),
        };
    }
}

impl Subscriber for ErrorLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.send(&Report::Detail(super::clip(line.0)));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
