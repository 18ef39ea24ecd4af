//! What launchers leave in the environment and say on their channels, see [`crate::outside`].

pub(crate) use super::pmi::outside::pmi;
pub(crate) use super::pmix::outside::pmix;
pub(crate) use super::tcp_store::outside::store;
use super::{Ancestors, Found, find, launcher_name};
use crate::config::Config;
use crate::launch::LaunchMeeting;
use crate::outside::variables;

/// Every variable that a launcher leaves, as [`variables`] numbers them.
const NAMES: &[&str] = &[
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RESTART_COUNT",
    super::BOARD,
    "PMI_RANK",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMIX_NAMESPACE",
    "PMIX_RANK",
    "PMI_FD",
    "PMI_PORT",
    "PMI_ID",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
];

/// Variables as lines; no launcher is talked to.
pub(crate) fn launchers(data: &[u8]) -> bool {
    let lookup = variables(data, NAMES);
    let named = launcher_name(&lookup);
    let Ok(found) = find(&lookup, &Ancestors::read) else {
        assert!(named.is_err());
        return false;
    };
    let Found::Slurm(step) = found else { return !matches!(found, Found::Nothing) };
    let config = Config { ports: Some(20_000..=20_100), ..Config::default() };
    let launch = step.launch(&config).expect("nobody is asked");
    assert!(launch.rank < launch.size);
    let LaunchMeeting::Address { host, port, .. } = launch.meeting else { panic!("srun gives an address") };
    assert!(!host.contains(char::is_whitespace) && port > 0);
    true
}
