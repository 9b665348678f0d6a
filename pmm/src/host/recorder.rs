//! Keeps the state of a plain guest in a file, without ever waiting for that: a thread stores, and a queue is
//! acknowledged at a later look, when its record is where a successor finds it.

use std::borrow::Cow;
use std::path::Path;
use std::time::{Duration, Instant};

use hvl_shared_abi::layout::Layout;
use serde::{Deserialize, Serialize};
use tracing::error;

use super::desk::Desk;
use super::{HostEnd, StateFile};
use crate::failure::Failure;
use crate::open::no_descriptors;
use crate::options::LinkDescription;
use crate::sys::Watches;
use crate::transport::plain::{PlainRecord, Recorder};

/// How long a file that cannot be written is left alone: the link asks fifty times a second.
const PAUSE: Duration = Duration::from_secs(1);

/// What a [`StateFile`] holds: the record, and for which link it is.
#[derive(Serialize, Deserialize)]
struct Kept {
    base: u64,
    layout: u64,
    record: PlainRecord,
}

type Store = Desk<Vec<u8>, std::io::Result<()>>;

/// Keeps the state of a plain guest in a file.
pub struct StateRecorder {
    /// The file, until there is a thread that has it.
    file: Option<StateFile>,
    found: Option<PlainRecord>,
    name: String,
    base: u64,
    layout: u64,
    store: Option<Store>,
    /// The record that is with the thread.
    pending: Option<PlainRecord>,
    /// The record that is in the file.
    stored: Option<PlainRecord>,
    /// When the last one could not be written.
    failed: Option<Instant>,
}

/// Wakes the link's loop when a record is stored.
pub struct StateNews(Store);

impl StateRecorder {
    /// Opens the file of a link, and starts nothing.
    ///
    /// # Errors
    ///
    /// See [`StateFile::open`].
    pub fn open(path: &Path, link: &LinkDescription, layout: &Layout) -> Result<StateRecorder, Failure> {
        let file = StateFile::open(path)?;
        let (base, layout) = (link.base, layout.identity());
        let kept = file.latest().and_then(|bytes| serde_json::from_slice::<Kept>(bytes).ok());
        let found = kept.filter(|kept| kept.base == base && kept.layout == layout).map(|kept| kept.record);
        Ok(StateRecorder {
            file: Some(file),
            found,
            name: format!("--state {}", path.display()),
            base,
            layout,
            store: None,
            pending: None,
            stored: None,
            failed: None,
        })
    }

    /// Returns what a predecessor kept, if it was for a link like this one.
    pub fn found(&self) -> Option<PlainRecord> {
        self.found
    }

    /// Starts the thread that stores. Before that nothing is.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if there is no thread to be had.
    pub fn start(&mut self) -> Result<Option<StateNews>, Failure> {
        let Some(mut file) = self.file.take() else { return Ok(None) };
        self.start_with(move |bytes| file.store(bytes)).map(Some)
    }

    fn start_with(
        &mut self,
        mut store: impl FnMut(&[u8]) -> std::io::Result<()> + Send + 'static,
    ) -> Result<StateNews, Failure> {
        let desk = Desk::start("state", move |bytes: Vec<u8>| store(&bytes)).map_err(no_descriptors)?;
        let news = StateNews(desk.share());
        self.store = Some(desk);
        Ok(news)
    }
}

impl Recorder for StateRecorder {
    fn record(&mut self, record: &PlainRecord) -> bool {
        let Some(store) = &self.store else { return false };
        match store.outcome() {
            Some(Ok(())) => (self.stored, self.failed) = (self.pending.take(), None),
            Some(Err(error)) => {
                self.pending = None;
                // Said once: it is tried again and again.
                if self.failed.replace(Instant::now()).is_none() {
                    error!(
                        "{}: cannot be written ({error}); the guest's queues are not acknowledged before it can, make room",
                        self.name
                    );
                }
            }
            None => {}
        }
        // While another one is on its way into the file, that one will be what a successor finds.
        if self.pending.is_some() {
            return false;
        }
        if self.stored.as_ref() == Some(record) {
            return true;
        }
        if self.failed.is_some_and(|at| at.elapsed() < PAUSE) {
            return false;
        }
        let kept = Kept { base: self.base, layout: self.layout, record: *record };
        if let Ok(bytes) = serde_json::to_vec(&kept) {
            store.give(bytes);
            self.pending = Some(*record);
        }
        false
    }
}

impl HostEnd for StateNews {
    fn watch(&self, watches: &mut Watches) {
        self.0.watch(watches);
    }

    fn progress(&mut self, _now_us: u64) {
        self.0.clear();
    }

    fn failure(&self) -> Option<String> {
        self.0.failure("--state")
    }

    fn state(&self) -> Cow<'static, str> {
        "".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Command, Run, parse};
    use std::sync::mpsc::channel;

    fn run(line: &str) -> Run {
        match parse(line.split_whitespace().map(Into::into)) {
            Ok(Command::Run(run)) => run,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn wait(news: &mut StateNews) {
        let mut watches = Watches::default();
        news.watch(&mut watches);
        assert!(watches.wait(Some(10_000_000)) > 0, "nothing was stored in 10 s");
        news.progress(0);
    }

    fn record_of(start: u16) -> PlainRecord {
        let mut record = PlainRecord::default();
        for queue in record.devices.iter_mut().flat_map(|device| &mut device.queues) {
            (queue.pfn, queue.size, queue.start) = (u32::MAX, u16::MAX, start);
        }
        record
    }

    const LINE: &str = "pmm run --no-dtb --shmem-addr 1M --shmem-size 1M --console pty";

    #[test]
    fn a_record_is_found_again_by_the_same_link_only() {
        let path = std::env::temp_dir().join(format!("pmm-open-state-{}", std::process::id()));
        let (one, other) = (run(LINE), run(&format!("{LINE} --rng")));
        let recorder = |run: &Run| StateRecorder::open(&path, &run.links[0], &run.links[0].layout().unwrap());
        // The largest record fits.
        let record = record_of(u16::MAX);
        let mut first = recorder(&one).unwrap();
        assert_eq!(first.found(), None);
        let mut news = first.start().unwrap().unwrap();
        assert!(!first.record(&record), "it is not in the file yet");
        wait(&mut news);
        assert!(first.record(&record));
        drop((first, news));
        // The first recorder's thread still holds the file's lock until it ends, and nothing joins it. Opening waits for
        // the lock for up to a second, so that 20 tries are 20 seconds.
        let again = |run: &Run| (0..20).find_map(|_| recorder(run).ok());
        assert_eq!(again(&one).unwrap().found(), Some(record));
        assert_eq!(again(&other).unwrap().found(), None);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_panic_of_the_thread_that_stores_is_told() {
        let path = std::env::temp_dir().join(format!("pmm-state-panic-{}", std::process::id()));
        let run = run(LINE);
        let link = &run.links[0];
        let mut recorder = StateRecorder::open(&path, link, &link.layout().unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut news = recorder.start_with(|_| panic!("the test's panic")).unwrap();
        assert_eq!(news.failure(), None);
        assert!(!recorder.record(&record_of(1)));
        wait(&mut news);
        assert!(news.failure().expect("a sentence").contains("--state panicked"));
    }

    #[test]
    fn a_file_that_holds_a_record_holds_up_nobody_and_no_other_record_counts_meanwhile() {
        let path = std::env::temp_dir().join(format!("pmm-state-held-{}", std::process::id()));
        let run = run(LINE);
        let link = &run.links[0];
        let mut recorder = StateRecorder::open(&path, link, &link.layout().unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        // In place of the file: it holds each record until the test lets go, and says what is in it.
        let ((go, may), (told, seen)) = (channel::<std::io::Result<()>>(), channel());
        let store = move |bytes: &[u8]| {
            let record = serde_json::from_slice::<Kept>(bytes).unwrap().record;
            may.recv().unwrap()?;
            told.send(record).unwrap();
            Ok(())
        };
        let mut news = recorder.start_with(store).unwrap();
        let (one, two) = (record_of(1), record_of(2));
        for _ in 0..1000 {
            assert!(!recorder.record(&one));
        }
        go.send(Ok(())).unwrap();
        wait(&mut news);
        assert_eq!(seen.recv().unwrap(), one);
        // The second takes the place of the first, which is true no longer then, nor the second before it is there.
        assert!(!recorder.record(&two));
        assert!(!recorder.record(&one) && !recorder.record(&two));
        go.send(Ok(())).unwrap();
        wait(&mut news);
        assert!(recorder.record(&two));
        assert_eq!(seen.recv().unwrap(), two);
        // A disk that is full: not acknowledged, and not asked again at once.
        assert!(!recorder.record(&one));
        go.send(Err(std::io::ErrorKind::StorageFull.into())).unwrap();
        wait(&mut news);
        assert!(!recorder.record(&one) && recorder.pending.is_none());
        // Later it has room.
        recorder.failed = recorder.failed.and_then(|at| at.checked_sub(PAUSE));
        go.send(Ok(())).unwrap();
        assert!(!recorder.record(&one));
        wait(&mut news);
        assert!(recorder.record(&one));
    }
}
