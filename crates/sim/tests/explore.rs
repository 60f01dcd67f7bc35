//! The smallest models, each to its end. `pontoon-explore` runs all of them.

use pontoon_sim::explore::{Limits, MODELS, Model, Order, exhaustible, explore, model};

/// Visits every state of the model with bounds that make it small.
fn all_states(name: &str, shrink: impl FnOnce(&mut Model)) -> pontoon_sim::explore::Report {
    let mut model = *model(name).unwrap();
    shrink(&mut model);
    let report = explore(&model, Order::Depth, Limits::NONE).unwrap_or_else(|found| panic!("{found}"));
    assert!(report.complete);
    report
}

#[test]
fn two_elections_in_one_term() {
    let report = all_states("stale-votes", |model| {
        model.campaigners = &[1, 3];
        model.bounds.timeouts = 2;
        model.term_max = 1;
    });
    assert!(report.states > 100 && report.committed_max == 1, "{report}");
}

#[test]
fn late_votes() {
    let report = all_states("stale-votes", |_| {});
    assert!(report.states > 10_000 && report.leaders_max == 2, "{report}");
}

#[test]
fn order_makes_no_difference() {
    let mut model = *model("stale-votes").unwrap();
    model.campaigners = &[1, 3];
    model.bounds.timeouts = 2;
    model.term_max = 1;
    let [breadth, depth] = [Order::Breadth, Order::Depth]
        .map(|order| explore(&model, order, Limits::NONE).unwrap_or_else(|found| panic!("{found}")));
    // How many states are covered by others depends on which comes first; what is found does not.
    assert_eq!((breadth.complete, depth.complete), (true, true));
    assert_eq!(
        (breadth.committed_max, breadth.leaders_max),
        (depth.committed_max, depth.leaders_max),
        "{breadth}; {depth}"
    );
    assert!(breadth.depth <= depth.depth, "breadth first goes the shortest ways");
}

/// Every state of the smallest of the bounded models; `pontoon-explore --exhaust` sees all of them whole.
#[test]
fn bounded_models_are_exhausted() {
    let bounded: Vec<Model> = MODELS.iter().filter_map(exhaustible).collect();
    assert!(bounded.len() >= 13, "a bound was misspelt");
    for model in
        bounded.into_iter().filter(|model| ["joint", "lost-record", "power-cut"].contains(&model.name))
    {
        let report = explore(&model, Order::Depth, Limits::NONE).unwrap_or_else(|found| panic!("{found}"));
        assert!(report.complete && report.states > 500, "{report}");
        assert!(!report.to_string().contains("not exhausted"), "{report}");
    }
}
