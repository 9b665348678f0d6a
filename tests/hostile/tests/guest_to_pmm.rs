//! Runs the table, each scenario by its name, and says which ones failed.

use std::panic::catch_unwind;

#[test]
fn no_scenario_of_a_hostile_guest_harms_the_pmm_or_its_neighbours() {
    let table = hvl_hostile::scenarios();
    let mut names: Vec<_> = table.iter().map(|scenario| scenario.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), table.len(), "every scenario has a name of its own");
    let failed: Vec<_> = table
        .iter()
        .filter(|scenario| {
            let ok = catch_unwind(|| hvl_hostile::run(scenario)).is_ok();
            println!("{} {}", if ok { "ok    " } else { "FAILED" }, scenario.name);
            !ok
        })
        .map(|scenario| scenario.name)
        .collect();
    assert!(failed.is_empty(), "{} of {} scenarios failed: {failed:#?}", failed.len(), table.len());
}
