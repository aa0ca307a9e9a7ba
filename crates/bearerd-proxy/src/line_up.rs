//! Lets the calls of a worker go side by side: whatever is ready comes to the same point before one goes on. So the code of
//! a step is in the processor's cache once for all of them, and a far side that one send has woken finds the others' already
//! there. docs/performance.md says what that saves.

use std::{future::poll_fn, task::Poll};

use crate::metrics::Shard;

/// Lets whatever else is ready at this worker go first, once; where there is hardly anything, goes on at once.
pub(crate) async fn line_up(shard: &Shard) {
    let mut waited = shard.in_flight.get() < CALLS_MIN;
    poll_fn(|cx| {
        if waited {
            return Poll::Ready(());
        }
        waited = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// With fewer calls than this there is nobody to go beside.
const CALLS_MIN: u64 = 4;

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::{
        runtime::{Builder, LocalOptions},
        task::spawn_local,
    };

    use super::*;

    /// In which order calls reach their first and their second step.
    fn steps(calls: usize) -> Vec<(u8, usize)> {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let shard = Rc::new(Shard::default());
        let runtime = Builder::new_current_thread().build_local(LocalOptions::default()).unwrap();
        let running: Vec<_> = (0..calls)
            .map(|call| {
                shard.in_flight.add_one();
                let (seen, shard) = (Rc::clone(&seen), Rc::clone(&shard));
                async move {
                    seen.borrow_mut().push((1, call));
                    line_up(&shard).await;
                    seen.borrow_mut().push((2, call));
                }
            })
            .collect();
        runtime.block_on(async {
            for task in running.into_iter().map(spawn_local).collect::<Vec<_>>() {
                task.await.unwrap();
            }
        });
        seen.take()
    }

    #[test]
    fn many_calls_go_step_by_step_and_few_at_once() {
        let expected: Vec<_> =
            [1, 2].into_iter().flat_map(|step| (0..9).map(move |call| (step, call))).collect();
        assert_eq!(steps(9), expected);
        assert_eq!(steps(2), [(1, 0), (2, 0), (1, 1), (2, 1)]);
    }
}
