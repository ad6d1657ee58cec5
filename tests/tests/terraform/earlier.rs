//! State that the earlier provider has written.

use anyhow::{Result, ensure};
use serde_json::json;

use super::world::{World, quick};

#[test]
fn a_task_of_the_earlier_provider_is_neither_forgotten_nor_taken_for_ours() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(&quick("old", "old"))?;
    let script = "#!/bin/bash\nmkdir -p results-old\necho \"$GREETING from old\" | tee results-old/said\n";
    let attributes = json!({
        "addresses": ["203.0.113.9"], "cloud": "local", "disk_size": -1,
        "environment": {"GREETING": "hello"}, "events": null, "id": World::task("old")?.as_str(),
        "image": "ubuntu", "logs": ["-- Logs begin"], "machine": "m", "name": "old", "parallelism": 1,
        "permission_set": "", "region": "us-west", "script": script, "spot": -1,
        "ssh_private_key": "-----BEGIN", "ssh_public_key": "ssh-rsa AAAA", "status": {"running": 1},
        "storage": [{"container": "", "container_opts": null, "exclude": null, "output": "results-old", "workdir": "."}],
        "tags": null, "timeout": 86400, "timeouts": null, "some_day_removed": true
    });
    let state = json!({
        "version": 4, "terraform_version": "1.2.0", "serial": 3,
        "lineage": "0e1c9c5e-6f0d-4d5e-8a3f-000000000001", "outputs": {},
        "resources": [{
            "mode": "managed", "type": "iterative_task", "name": "old",
            "provider": "provider[\"registry.terraform.io/iterative/iterative\"]",
            "instances": [{
                "schema_version": 0, "attributes": attributes,
                "sensitive_attributes": [],
                "private": "eyJzY2hlbWFfdmVyc2lvbiI6IjAifQ=="
            }]
        }],
        "check_results": null
    });
    world.rig.file("terraform.tfstate", state.to_string())?;
    let planned = world.run(&["plan", "-detailed-exitcode", "-no-color"])?.code(0)?;
    ensure!(planned.stdout_text().contains("was not made by this provider"), "{}", planned.description());
    let failed = world.destroy()?.code(1)?;
    ensure!(failed.stderr.contains("was not made by this provider"), "{}", failed.description());
    ensure!(world.listed()? == ["iterative_task.old"]);
    Ok(())
}
