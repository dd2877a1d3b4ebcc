//! The thread of an operation.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::World;
use crate::lifecycle::Host;
use crate::volume::Error;
use crate::volume::Reason;

/// What takes a thread a while to destroy at its end.
struct AtEnd(Arc<AtomicBool>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn the_thread_of_an_operation_has_ended_before_its_outcome_and_the_runtime_are_gone() {
    thread_local!(static LAST: RefCell<Option<AtEnd>> = const { RefCell::new(None) });
    for is_awaited in [true, false] {
        let has_ended = Arc::new(AtomicBool::new(false));
        let at_end = AtEnd(has_ended.clone());
        let (begun, begins) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let lifecycle = World::new().lifecycle;
            let operation = tokio::spawn(async move {
                let work = move |_: &Host| {
                    LAST.set(Some(at_end));
                    begun.send(()).map_err(|_| Error::new(Reason::Internal, "the test has gone"))
                };
                lifecycle.blocking(work).await
            });
            if is_awaited {
                operation.await.expect("no panic").expect("done");
                assert!(has_ended.load(Ordering::Acquire), "told before the end of the thread");
            } else {
                begins.recv().expect("the operation begins");
            }
        });
        drop(runtime);
        assert!(has_ended.load(Ordering::Acquire), "the thread outlived the runtime");
    }
}
