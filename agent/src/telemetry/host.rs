//! CPU, memory, disk and network of this machine.

use std::path::PathBuf;

use sysinfo::{Networks, System};
use tpi_store::telemetry::{GpuSample, Sample};

/// Reads the load; blocking.
pub(super) struct Probe {
    system: Option<System>,
    networks: Option<Networks>,
    disk: PathBuf,
}

/// What was read. A part that cannot be read is zero.
#[derive(Debug, Default)]
pub(super) struct Load {
    cpu: f64,
    memory_used: u64,
    memory_total: u64,
    disk_used: u64,
    disk_total: u64,
    network_received: u64,
    network_sent: u64,
}

impl Load {
    pub(super) fn into_sample(self, sequence: u64, time_unix_nanos: i64, gpus: Vec<GpuSample>) -> Sample {
        let Self { cpu, memory_used, memory_total, disk_used, disk_total, network_received, network_sent } =
            self;
        Sample {
            sequence,
            time_unix_nanos,
            cpu,
            memory_used,
            memory_total,
            disk_used,
            disk_total,
            network_received,
            network_sent,
            gpus,
        }
    }
}

impl Probe {
    pub(super) fn new(disk: PathBuf) -> Self {
        Self { system: System::new().ok(), networks: Networks::new_with_refreshed_list().ok(), disk }
    }

    pub(super) fn look(&mut self) -> Load {
        let mut load = Load::default();
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            load.cpu = share(system.global_cpu_usage());
            load.memory_used = system.used_memory();
            load.memory_total = system.total_memory();
        }
        if let Some(networks) = &mut self.networks {
            networks.refresh(true);
            for (name, network) in networks.iter() {
                if name != "lo" {
                    load.network_received += network.total_received();
                    load.network_sent += network.total_transmitted();
                }
            }
        }
        if let Ok(disk) = rustix::fs::statvfs(&self.disk) {
            load.disk_total = disk.f_blocks.saturating_mul(disk.f_frsize);
            load.disk_used = disk.f_blocks.saturating_sub(disk.f_bfree).saturating_mul(disk.f_frsize);
        }
        load
    }
}

/// Per cent as a share. Two looks within one tick of the kernel's clock make 0 of 0, which is not a number.
fn share(percent: f32) -> f64 {
    if percent.is_finite() { (f64::from(percent) / 100.0).clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn a_share_is_a_number_between_none_and_all() {
        for (percent, wanted) in [(0.0, 0.0), (50.0, 0.5), (101.0, 1.0), (-1.0, 0.0), (f32::NAN, 0.0)] {
            assert!((share(percent) - wanted).abs() < f64::EPSILON, "{percent}");
        }
    }
}
