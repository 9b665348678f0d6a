//! Runs the table, each scenario by its name, and says which ones failed.

#[test]
fn no_scenario_of_a_hostile_guest_harms_the_pmm_or_its_neighbours() {
    let table = hvl_hostile::scenarios();
    let table = table.iter().map(|scenario| (scenario.name, || hvl_hostile::run(scenario)));
    hvl_test_kit::table::run("The link, its rings, console and entropy, from the guest", table);
}
