//! Places at an instance: how many calls are under way there at once, over all workers. Who finds none waits in a
//! bounded queue that is fair to keys: places go round the keys that wait, whatever number of calls each has sent.
//!
//! While nobody waits, taking and giving back a place is one atomic operation each; the lock is for the queue alone.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use bearerd_model::{CallerKeyId, InstanceOrigin};
use tokio::{sync::oneshot, time::timeout};

/// The places of every instance that is called.
#[derive(Debug)]
pub(crate) struct AllPlaces {
    by_instance: Mutex<HashMap<InstanceOrigin, Arc<Places>>>,
    bounds: Bounds,
}

/// How many may be at one instance, and how many may wait for that, and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) places: usize,
    pub(crate) waiting: usize,
    pub(crate) wait_max: Duration,
}

impl AllPlaces {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { by_instance: Mutex::default(), bounds }
    }

    /// For a pool, once. Instances that nobody holds places of are forgotten.
    pub(crate) fn of(&self, instance: &InstanceOrigin) -> Arc<Places> {
        let mut by_instance = self.by_instance.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_instance.get(instance) {
            return Arc::clone(known);
        }
        by_instance.retain(|_, places| Arc::strong_count(places) > 1);
        let places = Arc::new(Places::new(self.bounds));
        by_instance.insert(instance.clone(), Arc::clone(&places));
        places
    }
}

/// The places of one instance.
#[derive(Debug)]
pub(crate) struct Places {
    bounds: Bounds,
    taken: AtomicUsize,
    /// As many as `queue` holds, read without its lock.
    waiting: AtomicUsize,
    /// Waiters that have left, and may still be in the queue.
    left: AtomicUsize,
    queue: Mutex<FairQueue<oneshot::Sender<Place>>>,
}

/// A call may be at the instance for as long as this lives.
#[derive(Debug)]
pub(crate) struct Place(Arc<Places>);

impl Place {
    pub(crate) fn is_at(&self, places: &Arc<Places>) -> bool {
        Arc::ptr_eq(&self.0, places)
    }
}

/// There is no place, and none came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// As many wait as may, none of their keys with more calls than this one.
    QueueFull,
    WaitedTooLong,
}

impl Places {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            queue: Mutex::new(FairQueue::new(bounds.waiting)),
        }
    }

    /// A place at once, if one is free and nobody waits.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Place> {
        if self.waiting.load(SeqCst) > 0 { None } else { self.take_free() }
    }

    /// Waits for a place. Dropping the future leaves the queue.
    pub(crate) async fn take(self: &Arc<Self>, key: &CallerKeyId) -> Result<Place, Full> {
        let (give, given) = oneshot::channel();
        {
            let mut queue = self.queue();
            if queue.is_full() && self.left.swap(0, SeqCst) > 0 {
                queue.retain(|waiter| !waiter.is_closed());
            }
            let shed = queue.push(key.clone(), give);
            self.waiting.store(queue.len(), SeqCst);
            drop(shed); // its caller is told by that
            // One may have come free before this call was seen to wait.
            self.serve(&mut queue);
        }
        let leaving = Leaving(self);
        match timeout(self.bounds.wait_max, given).await {
            Ok(outcome) => {
                std::mem::forget(leaving);
                outcome.map_err(|_| Full::QueueFull)
            }
            Err(_) => Err(Full::WaitedTooLong),
        }
    }

    /// Somebody waits for one.
    pub(crate) fn are_wanted(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// More than half are taken: a call should be ready to go before it takes one.
    pub(crate) fn are_few(&self) -> bool {
        self.taken.load(Relaxed) > self.bounds.places / 2
    }

    fn take_free(self: &Arc<Self>) -> Option<Place> {
        let more = |taken: usize| (taken < self.bounds.places).then_some(taken + 1);
        self.taken.fetch_update(SeqCst, SeqCst, more).ok().map(|_| Place(Arc::clone(self)))
    }

    /// Gives what is free to who waits. A place whose waiter has left is given to the next.
    fn serve(self: &Arc<Self>, queue: &mut FairQueue<oneshot::Sender<Place>>) {
        let mut free = None;
        while queue.len() > 0 {
            let Some(place) = free.take().or_else(|| self.take_free()) else { break };
            let Some(waiter) = queue.pop() else { break };
            self.waiting.store(queue.len(), SeqCst);
            free = waiter.send(place).err();
        }
        // What is left over goes back by its drop, which needs no lock: nobody waits any more.
    }

    fn queue(&self) -> MutexGuard<'_, FairQueue<oneshot::Sender<Place>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A waiter that leaves by dropping this.
struct Leaving<'a>(&'a Places);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, SeqCst);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, SeqCst);
        // Whoever queues up first says so and then looks for a free place: one of the two sees the other.
        if self.0.waiting.load(SeqCst) > 0 {
            self.0.serve(&mut self.0.queue());
        }
    }
}

/// A bounded queue in which keys take turns.
#[derive(Debug)]
struct FairQueue<T> {
    /// Keys that wait; the first is the next one's turn.
    turns: VecDeque<CallerKeyId>,
    by_key: HashMap<CallerKeyId, VecDeque<T>>,
    len: usize,
    len_max: usize,
}

impl<T> FairQueue<T> {
    fn new(len_max: usize) -> Self {
        Self { turns: VecDeque::new(), by_key: HashMap::new(), len: 0, len_max }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn is_full(&self) -> bool {
        self.len >= self.len_max
    }

    fn retain(&mut self, stays: impl Fn(&T) -> bool) {
        self.by_key.retain(|_, items| {
            items.retain(&stays);
            !items.is_empty()
        });
        self.turns.retain(|key| self.by_key.contains_key(key));
        self.len = self.by_key.values().map(VecDeque::len).sum();
    }

    /// Gives back who is shed: nobody while there is room; else the newest of the key with the most, which may be
    /// `item` itself.
    fn push(&mut self, key: CallerKeyId, item: T) -> Option<T> {
        let own = self.by_key.get(&key).map_or(0, VecDeque::len);
        let mut shed = None;
        if self.is_full() {
            let longest = self.turns.iter().max_by_key(|key| self.by_key[*key].len()).cloned();
            match longest.filter(|longest| self.by_key[longest].len() > own + 1) {
                None => return Some(item),
                Some(longest) => shed = self.take_newest(&longest),
            }
        }
        if own == 0 {
            self.turns.push_back(key.clone());
        }
        self.by_key.entry(key).or_default().push_back(item);
        self.len += 1;
        shed
    }

    /// The oldest of the key whose turn it is.
    fn pop(&mut self) -> Option<T> {
        let key = self.turns.pop_front()?;
        let items = self.by_key.get_mut(&key)?;
        let item = items.pop_front();
        if items.is_empty() {
            self.by_key.remove(&key);
        } else {
            self.turns.push_back(key);
        }
        self.len -= usize::from(item.is_some());
        item
    }

    fn take_newest(&mut self, key: &CallerKeyId) -> Option<T> {
        // It has at least two, so that the key stays.
        let item = self.by_key.get_mut(key)?.pop_back();
        self.len -= usize::from(item.is_some());
        item
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn key(number: u8) -> CallerKeyId {
        CallerKeyId::parse(&format!("key{number}")).unwrap()
    }

    fn places(places: usize, waiting: usize) -> Arc<Places> {
        Arc::new(Places::new(Bounds { places, waiting, wait_max: Duration::from_secs(5) }))
    }

    #[test]
    fn keys_take_turns_whatever_they_have_sent() {
        let mut queue = FairQueue::new(10);
        for item in ["a1", "a2", "a3", "a4", "b1", "c1", "b2"] {
            let number = item.as_bytes()[0];
            assert_eq!(queue.push(key(number), item), None);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]);
    }

    #[test]
    fn who_has_most_in_a_full_queue_is_shed() {
        let mut queue = FairQueue::new(3);
        for item in ["a1", "a2", "a3"] {
            assert_eq!(queue.push(key(b'a'), item), None);
        }
        assert_eq!(queue.push(key(b'a'), "a4"), Some("a4"));
        assert_eq!(queue.push(key(b'b'), "b1"), Some("a3"));
        assert_eq!(queue.push(key(b'c'), "c1"), Some("a2"));
        assert_eq!(
            queue.push(key(b'd'), "d1"),
            Some("d1"),
            "each has one: it would be another's turn for its own"
        );
        assert_eq!(queue.len(), 3);
    }

    proptest! {
        /// Nothing is lost or doubled, the bound holds, and no key waits while another is served twice.
        #[test]
        fn the_queue_is_bounded_and_fair(steps in collection::vec((0_u8..5, any::<bool>()), 0..200), len_max in 1_usize..20) {
            let mut queue = FairQueue::new(len_max);
            let (mut given, mut back, mut served) = (0, 0, Vec::<u8>::new());
            for (number, push) in steps {
                if push {
                    given += 1;
                    back += usize::from(queue.push(key(number), number).is_some());
                    served.clear();
                } else if let Some(number) = queue.pop() {
                    back += 1;
                    // Since the last arrival: a key comes again only after every other that waits.
                    if let Some(at) = served.iter().rposition(|earlier| *earlier == number) {
                        let between = &served[at + 1..];
                        prop_assert!(queue.turns.iter().all(|waits| *waits == key(number)
                            || between.iter().any(|other| key(*other) == *waits)));
                    }
                    served.push(number);
                }
                prop_assert!(queue.len() <= len_max);
                prop_assert_eq!(queue.by_key.values().map(VecDeque::len).sum::<usize>(), queue.len());
                prop_assert_eq!(given - back, queue.len());
            }
        }
    }

    #[test]
    fn who_left_makes_room() {
        let mut queue = FairQueue::new(3);
        for item in ["a1", "b1", "a2"] {
            assert_eq!(queue.push(key(item.as_bytes()[0]), item), None);
        }
        queue.retain(|item| !item.starts_with('b'));
        assert_eq!((queue.len(), queue.turns.len()), (2, 1));
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), ["a1", "a2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_next_place_or_is_told() {
        let places = places(1, 1);
        let held = places.try_take().unwrap();
        assert!(places.try_take().is_none());
        let waiter = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take(&key(1)).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(places.take(&key(1)).await.map(drop), Err(Full::QueueFull));
        assert!(places.try_take().is_none(), "nobody passes by the queue");
        drop(held);
        assert_eq!(waiter.await.unwrap(), Ok(()));
        assert!(places.try_take().is_some());
        let _held = places.try_take();
        assert_eq!(places.take(&key(1)).await.map(drop), Err(Full::WaitedTooLong));
    }

    /// A waiter that left is passed over, and its place is not lost.
    #[tokio::test]
    async fn a_waiter_that_leaves_takes_nothing_with_it() {
        let places = places(1, 5);
        let held = places.try_take().unwrap();
        for number in 0..3 {
            let key = key(number);
            let mut leaves = Box::pin(places.take(&key));
            assert!(futures_util::poll!(leaves.as_mut()).is_pending());
        }
        drop(held);
        assert_eq!(places.taken.load(SeqCst), 0);
        assert_eq!(places.waiting.load(SeqCst), 0);
        assert!(places.try_take().is_some());
    }

    /// Many threads: never more than there are places, and all come to an end.
    #[test]
    fn no_place_is_lost_or_taken_twice() {
        let places = places(3, 10_000);
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let (places, inside) = (Arc::clone(&places), Arc::clone(&inside));
                std::thread::spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    runtime.block_on(async {
                        let calls = (0..500).map(|_| async {
                            let place = match places.try_take() {
                                Some(place) => place,
                                None => places.take(&key(number)).await.unwrap(),
                            };
                            assert!(inside.fetch_add(1, SeqCst) < 3);
                            tokio::task::yield_now().await;
                            inside.fetch_sub(1, SeqCst);
                            drop(place);
                        });
                        futures_util::future::join_all(calls).await;
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!((places.taken.load(SeqCst), places.waiting.load(SeqCst)), (0, 0));
    }
}
