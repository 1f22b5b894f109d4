//! What streaming meets behind a running guest, said at once; and what is to be said of it at the end.

use std::sync::{Arc, Mutex, PoisonError};

use squib_host::pager::{StreamEvent, StreamObserver};

use crate::error::{Error, Result};
use crate::report::Report;

/// Reasons of losses that are said one by one; more of them are only counted.
const SAID: usize = 4;

/// What was met so far.
#[derive(Clone, Debug)]
pub struct Streaming {
    report: Report,
    met: Arc<Mutex<Met>>,
}

#[derive(Debug, Default)]
struct Met {
    /// Pages lost.
    lost: u64,
    /// Why, each reason once: a file is checked by blocks, so that many pages have the same.
    reasons: Vec<String>,
    /// What the source gives instead of the right bytes, as long as it does.
    wrong: Option<String>,
}

impl Streaming {
    /// Nothing yet.
    pub fn new(report: Report) -> Streaming {
        Streaming { report, met: Arc::default() }
    }

    /// For the machine.
    pub fn observer(&self) -> StreamObserver {
        let streaming = self.clone();
        StreamObserver::new(move |event| streaming.meet(event))
    }

    fn meet(&self, event: StreamEvent) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            StreamEvent::Lost { start, len, reason } => {
                met.lost += 1;
                if met.reasons.len() < SAID && !met.reasons.contains(&reason) {
                    self.report.memory_lost(start, len, &reason);
                    met.reasons.push(reason);
                }
            }
            StreamEvent::Away { wrong, reason } => {
                self.report.stream_away(&reason);
                met.wrong = wrong.then_some(reason);
            }
            StreamEvent::Back => {
                self.report.stream_back();
                met.wrong = None;
            }
        }
    }

    /// At the end of a run that went well otherwise.
    ///
    /// # Errors
    /// Memory that is damaged, though the guest did not need it in this run.
    pub fn verdict(&self) -> Result<()> {
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        match (met.reasons.first(), &met.wrong) {
            (Some(reason), _) => Err(Error::Message(format!(
                "{} pages of guest memory are lost, though the guest did not need them in this run: {reason}",
                met.lost
            ))),
            (None, Some(wrong)) => Err(Error::Message(format!(
                "guest memory did not arrive, though the guest did not need it in this run: {wrong}"
            ))),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_and_lies_are_errors_at_the_end_and_absence_is_not() {
        let streaming = Streaming::new(Report::Quiet);
        let away = |wrong| StreamEvent::Away { wrong, reason: "pages.sock".into() };
        streaming.verdict().unwrap();
        streaming.meet(away(false));
        streaming.verdict().unwrap();
        streaming.meet(away(true));
        assert!(streaming.verdict().unwrap_err().to_string().contains("did not arrive"));
        streaming.meet(StreamEvent::Back);
        streaming.verdict().unwrap();
        for page in 0..300 {
            let reason = format!("block {} of vm.mem is damaged", page / 30);
            streaming.meet(StreamEvent::Lost { start: page, len: 1, reason });
        }
        let error = streaming.verdict().unwrap_err().to_string();
        assert!(error.contains("300 pages") && error.contains("block 0 of vm.mem"), "{error}");
        assert_eq!(streaming.met.lock().unwrap().reasons.len(), SAID);
    }
}
