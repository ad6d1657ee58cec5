//! What there was of machines, and whether nothing is left: what `status` and `destroy` print.

use super::{human, table::table, words};
use crate::engine::Proof;

/// Text of a proof. `all`: it is about everything of the task, not only about its machines.
#[must_use]
pub(super) fn text(proof: &Proof, all: bool) -> String {
    let mut text = String::new();
    if !proof.machines.is_empty() {
        let dollars = |usd: Option<f64>| usd.map_or_else(|| "-".to_owned(), |usd| format!("${usd:.4}"));
        let mut rows: Vec<[String; 6]> = proof
            .machines
            .iter()
            .map(|line| {
                [
                    line.machine.to_string(),
                    human::time(line.launched),
                    line.ended.map_or_else(|| "-".to_owned(), human::time),
                    match (line.end, line.ended) {
                        (Some(end), _) => words::machine_end(end),
                        (None, Some(_)) => "unknown",
                        (None, None) => "alive",
                    }
                    .to_owned(),
                    format!("{:.0}", line.seconds),
                    dollars(line.usd),
                ]
            })
            .collect();
        if proof.machines.len() > 1 {
            let none = String::new;
            let seconds = format!("{:.0}", proof.seconds);
            rows.push(["total".to_owned(), none(), none(), none(), seconds, dollars(proof.usd)]);
        }
        text = table(["MACHINE", "LAUNCHED", "ENDED", "WHY", "SECONDS", "COST"], &rows);
    }
    if let Some(why) = &proof.unproved {
        return text + &format!("the cloud could not be asked: {why}\n");
    }
    let alive = proof.machines.iter().filter(|line| line.ended.is_none()).count();
    let left = match (all, proof.nothing_left) {
        (true, true) => "nothing is left".to_owned(),
        (true, false) => "something is left".to_owned(),
        (false, true) => "no machine is there".to_owned(),
        (false, false) => format!("{} alive", human::count(alive.try_into().unwrap_or(u64::MAX), "machine")),
    };
    text + &format!("{left} (the cloud was asked at {})\n", human::time(proof.checked))
}

#[cfg(test)]
mod tests {
    use tpi_proto::id::MachineId;

    use super::*;
    use crate::{cloud::MachineEnd, engine::ProofLine};

    #[test]
    fn a_proof_is_a_table_and_a_sentence() {
        let line = |id: &str, usd| ProofLine {
            machine: MachineId(id.to_owned()),
            launched: "2026-11-23T20:00:00Z".parse().expect("a time"),
            ended: "2026-11-23T20:01:05Z".parse().ok(),
            end: Some(MachineEnd::Released),
            seconds: 65.2,
            usd,
        };
        let mut proof = Proof {
            unproved: None,
            nothing_left: true,
            checked: "2026-11-23T20:02:00Z".parse().expect("a time"),
            machines: vec![line("m-1", Some(0.0)), line("m-22", None)],
            seconds: 130.4,
            usd: None,
        };
        insta::assert_snapshot!(text(&proof, true), @r"
        MACHINE  LAUNCHED              ENDED                 WHY       SECONDS  COST
        m-1      2026-11-23 20:00:00Z  2026-11-23 20:01:05Z  released  65       $0.0000
        m-22     2026-11-23 20:00:00Z  2026-11-23 20:01:05Z  released  65       -
        total                                                          130      -
        nothing is left (the cloud was asked at 2026-11-23 20:02:00Z)
        ");
        for line in &mut proof.machines {
            line.end = None;
        }
        assert!(text(&proof, true).contains("unknown  65"));
        proof.machines.clear();
        proof.nothing_left = false;
        assert!(text(&proof, false).starts_with("0 machines alive (the cloud"));
        insta::assert_snapshot!(text(&proof, true), @"something is left (the cloud was asked at 2026-11-23 20:02:00Z)");
        proof.unproved = Some("looking for machines: no route to host".to_owned());
        insta::assert_snapshot!(text(&proof, false), @"the cloud could not be asked: looking for machines: no route to host");
    }
}
