//! Running a model: stateright searches for a violated property, and a walk backwards from the goal finds the states
//! that cannot reach it. Stateright's own `eventually` looks at single paths and gives up at cycles; a protocol that
//! polls is all cycles.

use stateright::{Checker, HasDiscoveries, Model, Property};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Debug};
use std::hash::Hash;

/// One transition: what it is in the protocol's words, and the state it leads to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Move<S> {
    /// The step, for traces: who, which step, which word.
    pub step: &'static str,
    /// Whether the environment did it: a death, a fault, a reset for no reason. Recovery must not need one.
    pub hardship: bool,
    /// The state after it.
    pub next: S,
}

impl<S> Debug for Move<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.step)
    }
}

/// A model that this crate can check: a list of moves per state.
pub trait Spec: Clone + Send + Sync + 'static {
    /// All words of the region, both sides' private state, and ghosts.
    type State: Copy + Debug + Eq + Hash + Send + Sync + 'static;
    /// The name of a safety property.
    type Broken: Copy + Debug + PartialEq + 'static;

    /// The states that the link may be found in.
    fn start(&self) -> Vec<Self::State>;
    /// Every transition out of a state. None from a state that is broken.
    fn moves(&self, state: &Self::State, out: &mut Vec<Move<Self::State>>);
    /// The safety property that this state violates, if it does.
    fn broken(&self, state: &Self::State) -> Option<Self::Broken>;
    /// Whether this is where the protocol wants to be.
    fn goal(&self, state: &Self::State) -> bool;
}

/// The stateright model of it. An action carries the state that it leads to, so that a step is written once.
#[derive(Clone)]
struct Checked<P>(P);

impl<P: Spec> Model for Checked<P> {
    type State = P::State;
    type Action = Move<P::State>;

    fn init_states(&self) -> Vec<P::State> {
        self.0.start()
    }

    fn actions(&self, state: &P::State, actions: &mut Vec<Self::Action>) {
        self.0.moves(state, actions);
    }

    fn next_state(&self, _: &P::State, action: Self::Action) -> Option<P::State> {
        Some(action.next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("safe", |model, state| model.0.broken(state).is_none())]
    }
}

/// Searches for the nearest state that violates a safety property. Returns the property and the trace to it, or the
/// number of states visited.
pub fn safe<P: Spec>(spec: &P) -> Result<usize, (P::Broken, String)> {
    let checker = Checked(spec.clone()).checker().finish_when(HasDiscoveries::Any).spawn_bfs().join();
    let Some(path) = checker.discovery("safe") else {
        return Ok(checker.unique_state_count());
    };
    let broken = spec.broken(path.last_state()).expect("the discovered state violates the property");
    let steps: Vec<_> = path.into_actions().iter().map(|a| a.step).collect();
    Err((broken, steps.join("\n  ")))
}

/// Searches for a state from which the goal cannot be reached without another hardship. Returns the shortest trace to
/// one, or `None` if there is no such state.
pub fn stranded<P: Spec>(spec: &P) -> Option<String> {
    let mut index: HashMap<P::State, u32> = HashMap::new();
    let mut states: Vec<P::State> = Vec::new();
    let mut origin: Vec<(u32, &'static str)> = Vec::new();
    for state in spec.start() {
        index.insert(state, states.len() as u32);
        states.push(state);
        origin.push((u32::MAX, "start"));
    }
    // Edges of the ordinary kind, as (to, from).
    let mut back: Vec<(u32, u32)> = Vec::new();
    let mut moves = Vec::new();
    let mut at = 0;
    while at < states.len() {
        let state = states[at];
        spec.moves(&state, &mut moves);
        for Move { step, hardship, next } in moves.drain(..) {
            let to = match index.entry(next) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let number = states.len() as u32;
                    new.insert(number);
                    states.push(next);
                    origin.push((at as u32, step));
                    number
                }
            };
            if !hardship {
                back.push((to, at as u32));
            }
        }
        at += 1;
    }

    back.sort_unstable();
    let mut good: Vec<bool> = states.iter().map(|s| spec.goal(s)).collect();
    let mut work: Vec<u32> = (0..states.len() as u32).filter(|&i| good[i as usize]).collect();
    while let Some(to) = work.pop() {
        let first = back.partition_point(|&(t, _)| t < to);
        for &(_, from) in back[first..].iter().take_while(|&&(t, _)| t == to) {
            if !good[from as usize] {
                good[from as usize] = true;
                work.push(from);
            }
        }
    }

    // A broken state has no way on; it is the safety search that reports it.
    let lost = (0..states.len()).find(|&i| !good[i] && spec.broken(&states[i]).is_none())?;
    let mut trace = Vec::new();
    let mut i = lost;
    while origin[i].0 != u32::MAX {
        trace.push(origin[i].1);
        i = origin[i].0 as usize;
    }
    trace.reverse();
    Some(format!("{}\nstuck in {:#?}", trace.join("\n  "), states[lost]))
}

/// Asserts that a model is safe and live; prints how many states that took.
///
/// # Panics
/// With the trace, if it is not.
pub fn verify<P: Spec>(spec: &P) {
    match safe(spec) {
        Ok(states) => println!("{states} states"),
        Err((broken, trace)) => panic!("{broken:?}:\n  {trace}"),
    }
    live(spec);
}

/// Asserts that every state can still reach the goal.
///
/// # Panics
/// With the trace, if one cannot.
pub fn live<P: Spec>(spec: &P) {
    if let Some(trace) = stranded(spec) {
        panic!("the goal cannot be reached any more after:\n  {trace}");
    }
}

/// Asserts that a model violates this safety property, and this one first.
///
/// # Panics
/// If it is safe, or violates another.
pub fn caught<P: Spec>(spec: &P, expected: P::Broken) {
    match safe(spec) {
        Ok(states) => panic!("nothing is violated in {states} states; expected {expected:?}"),
        Err((broken, trace)) => {
            println!("{broken:?}:\n  {trace}");
            assert_eq!(broken, expected, "after:\n  {trace}");
        }
    }
}
