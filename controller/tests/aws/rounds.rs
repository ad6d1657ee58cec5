//! How many rounds of requests depend on each other: what a user waits for, whatever the network.

use std::fmt::Write as _;

use tpi_controller::{
    cloud::{Cloud as _, aws::Aws},
    home::Home,
};
use tpi_proto::id::TaskId;

use super::{
    Place, causes,
    gate::{Gate, Seen},
    program::{Computer, done, fresh},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_made_and_removed_in_few_rounds() {
    let Some(place) = Place::new("me-south-1") else { return };
    let gate = Gate::in_waves(&place.api.endpoint);
    let mut settings = place.settings();
    settings.endpoint = Some(gate.endpoint.clone());
    // Known, as it is when the store of the task has been opened.
    let mut want = place.hour(2);
    want.store = "s3://tpi-0011223344556677-ap-south-1/".parse().unwrap();
    let aws = || Aws::with(&Home::at(place.home.path()), settings.clone());
    let made = aws().ensure(&want).await;
    let (rounds, asked) = gate.take();
    let told = || asked.iter().map(|s| format!("{} {}", s.wave, s.action)).collect::<Vec<_>>().join(", ");
    let _observed = made.unwrap_or_else(|e| panic!("{}", causes(&e)));
    assert!(rounds <= 8, "{rounds} rounds: {}", told());
    report("making a group", rounds, asked.len());

    let _again = aws().ensure(&want).await.unwrap();
    let (rounds, asked) = gate.take();
    assert!(rounds <= 4, "{rounds} rounds: {asked:?}");
    report("finding that it is made", rounds, asked.len());

    let _gone = aws().destroy(&want.task).await.unwrap();
    let (rounds, asked) = gate.take();
    let told = asked.iter().map(|s| format!("{} {}", s.wave, s.action)).collect::<Vec<_>>().join(", ");
    assert!(rounds <= 8, "{rounds} rounds: {told}");
    report("removing it", rounds, asked.len());
    assert_eq!(place.left(&want.task), Vec::<String>::new());
}

/// From nothing to ordered machines, and from machines to nothing: everything that the program asks of anybody.
#[test]
fn the_program_submits_and_destroys_in_few_rounds() {
    let Some(place) = Place::new("af-south-1") else { return };
    let gate = Gate::in_waves(&place.api.endpoint);
    let computer = Computer::new(&place, &gate.endpoint);
    let in_all = |(rounds, asked): (u32, Vec<Seen>)| {
        let mut told = String::new();
        for seen in &asked {
            write!(told, "\n{} {} {}", seen.wave, seen.service, seen.action).unwrap();
        }
        (rounds, asked.len(), told)
    };
    for (what, limit) in [("the first submit in a region", 24), ("the next one", 21)] {
        let name = fresh("rounds");
        let id: TaskId = done(&computer.submit(&name, None)).parse().unwrap();
        let (rounds, requests, told) = in_all(gate.take());
        report(what, rounds, requests);
        assert!(rounds <= limit, "{rounds} rounds:{told}");
        let _text = done(&computer.run(&["destroy", &name]));
        let (rounds, requests, told) = in_all(gate.take());
        report("destroy", rounds, requests);
        assert!(rounds <= 22, "{rounds} rounds:{told}");
        assert_eq!(place.left(&id), Vec::<String>::new());
    }
}

#[expect(clippy::print_stderr, reason = "figures")]
pub(crate) fn report(what: &str, rounds: u32, requests: usize) {
    eprintln!("{what}: {rounds} rounds, {requests} requests");
}
