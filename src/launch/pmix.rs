//! PMIx: how Open MPI's mpirun, PRRTE and `srun --mpi=pmix` talk to their ranks.
//!
//! PMIx is a C library (`libpmix.so.2`), not a wire protocol one could speak, so it is loaded when the launcher's
//! variables are there and not otherwise. Rank 0 puts the notice under a key and commits it; the others get it from
//! rank 0 by name. A get waits at the launcher until rank 0 has committed, so no fence is needed, and a missing third
//! rank does not keep the first two from reading: who is missing is then found out, by name, where the ranks meet.
//!
//! # When to take leave
//!
//! At the end of the process, as with PMI, and for the same reasons. The library counts how often it was initialised, so
//! it can be shared with an [MPI](super::mpi) in the same process, before or after; but once the last one has finalised
//! it, the launcher takes the process for done, and no MPI can be initialised any more. So that it *is* shared, the one
//! that is in the process already comes first, then whatever the system has.
//!
//! The C structures used here have had the same layout since PMIx 3 (2018); older libraries are refused.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use libloading::Library;
use maypole_transports::fork;
use maypole_transports::lock::Mutex;

use super::{
    Board, LONGEST_NOTICE, Launch, LaunchMeeting, Lookup, check_rank, environment, is_done_with, mpi, notice_number,
    number,
};
use crate::error::{Error, Result};
use crate::running::{LOOK, Limit};

/// Whether the variables offer PMIx.
pub(super) fn present(lookup: Lookup) -> bool {
    lookup("PMIX_NAMESPACE").is_some() && lookup("PMIX_RANK").is_some()
}

/// Whose PMIx it is.
pub(super) fn launcher(lookup: Lookup) -> &'static str {
    if lookup("OMPI_COMM_WORLD_RANK").is_some() || lookup("OMPI_COMMAND").is_some() {
        "Open MPI"
    } else if lookup("SLURM_PROCID").is_some() {
        super::slurm::LAUNCHER
    } else {
        "PMIx"
    }
}

/// Load the library, connect to the launcher's server, and ask who we are.
pub(super) fn launch(lookup: Lookup, limit: &Limit) -> Result<Launch> {
    let api = match Api::load(lookup) {
        Ok(api) => api,
        Err(error) => {
            // mpirun's own variables still say who we are; with an address that is enough.
            return match environment::Variables::read_numbers(lookup, &environment::OPEN_MPI) {
                Ok(Some(variables)) => variables.launch(limit),
                _ => Err(error),
            };
        }
    };
    let told = bounded(limit, "tell this process who it is", move || Told::ask(api))??;
    let rank = told.board.me.rank as usize;
    let named: Option<usize> = number(lookup, "PMIX_RANK", "this process's rank")?;
    if named != Some(rank) {
        return Err(Error::bootstrap(format!(
            "PMIx says that this process is rank {rank}, but PMIX_RANK={}: the variables are left over from another job, or the library's \
             structures are not those of PMIx 3 and later",
            named.unwrap_or_default()
        )));
    }
    let size = told.size.ok_or_else(|| {
        Error::bootstrap(format!("rank {rank}: PMIx does not say how many ranks there are (pmix.job.size)"))
    })?;
    check_rank("PMIX_RANK", rank, "pmix.job.size", size)?;
    Ok(Launch {
        rank,
        size,
        local_rank: told.local_rank,
        local_size: told.local_size,
        launcher: launcher(lookup),
        run: String::new(),
        meeting: LaunchMeeting::Board(Box::new(Client { answer: limit.left(), ..told.board })),
    })
}

/// Have the library do something for which it waits for the launcher, for as long as it likes: it knows no deadlines. So a
/// thread of its own does it, and is left to it when the limit has passed.
///
/// # Errors
/// [`Error::Bootstrap`] then; [`Error::System`] if there can be no thread.
fn bounded<T: Send + 'static>(limit: &Limit, doing: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (sender, receiver) = channel();
    let work = move || {
        crate::node::quiet_thread();
        // Nobody listens any more after a deadline.
        let _ = sender.send(work());
    };
    let thread = std::thread::Builder::new().name("maypole-pmix".into()).spawn(work);
    thread.map_err(|e| Error::system("starting a thread to talk to the launcher with", e))?;
    loop {
        match receiver.recv_timeout(limit.left().min(LOOK)) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) if !limit.has_passed() => {}
            Err(_) => {
                return Err(Error::bootstrap(format!(
                    "PMIx did not {doing} in time: the launcher does not answer; is mpirun (or srun's step) stopped?"
                )));
            }
        }
    }
}

/// What the launcher says of this process.
struct Told {
    board: Client,
    size: Option<usize>,
    local_rank: Option<usize>,
    local_size: Option<usize>,
}

impl Told {
    fn ask(api: &'static Api) -> Result<Told> {
        let board = Client::connect(api)?;
        let everyone = Proc { rank: RANK_WILDCARD, ..board.me };
        Ok(Told {
            size: board.number(&everyone, c"pmix.job.size"),
            local_rank: board.number(&board.me, c"pmix.lrank"),
            local_size: board.number(&everyone, c"pmix.local.size"),
            board,
        })
    }
}

/// Where `libpmix` was found and its version, or why it cannot be used; for `maypole info`.
pub fn library(lookup: &dyn Fn(&str) -> Option<String>) -> std::result::Result<String, String> {
    Api::load(lookup).map(|api| api.description.clone()).map_err(|error| error.to_string())
}

const SUCCESS: c_int = 0;
/// Servers give up on a key after a while of their own (Open MPI's after 2 s), whatever the deadline here.
const ERR_TIMEOUT: c_int = -24;
const ERR_NOT_FOUND: c_int = -46;
const SCOPE_GLOBAL: u8 = 3;
const RANK_WILDCARD: u32 = u32::MAX - 1;
const TYPE_SIZE: u16 = 4;
const TYPE_UINT16: u16 = 13;
const TYPE_UINT32: u16 = 14;
const TYPE_UINT64: u16 = 15;
const TYPE_BYTE_OBJECT: u16 = 27;
const TYPE_PROC_RANK: u16 = 40;

/// `pmix_proc_t`: a process is a namespace (a job) and a rank in it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Proc {
    nspace: [c_char; 256],
    rank: u32,
}

/// `pmix_byte_object_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ByteObject {
    bytes: *mut c_char,
    size: usize,
}

/// The union inside `pmix_value_t`, as far as it is used here; its largest member is three words.
#[repr(C)]
union Data {
    uint16: u16,
    uint32: u32,
    uint64: u64,
    bytes: ByteObject,
    _room: [usize; 3],
}

/// `pmix_value_t`.
#[repr(C)]
struct Value {
    kind: u16,
    data: Data,
}

// What a C compiler makes of the library's own header, on every 64-bit Linux.
const _: () = assert!(size_of::<Proc>() == 260 && size_of::<Value>() == 32 && std::mem::offset_of!(Value, data) == 8);

/// `pmix_info_t` is never built here: no call is given directives.
enum Info {}

type GetCallback = extern "C" fn(c_int, *mut Value, *mut c_void);

/// The library's functions that are used.
struct Api {
    description: String,
    init: unsafe extern "C" fn(*mut Proc, *mut Info, usize) -> c_int,
    finalize: unsafe extern "C" fn(*const Info, usize) -> c_int,
    put: unsafe extern "C" fn(u8, *const c_char, *mut Value) -> c_int,
    commit: unsafe extern "C" fn() -> c_int,
    get: unsafe extern "C" fn(*const Proc, *const c_char, *const Info, usize, *mut *mut Value) -> c_int,
    get_nb: unsafe extern "C" fn(*const Proc, *const c_char, *const Info, usize, GetCallback, *mut c_void) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: Library,
}

/// Where the library may be: in this process already; where the launcher that started it has its own, which its server
/// understands best and an MPI in this process would load; where the dynamic linker looks; beside an mpirun.
fn candidates(lookup: Lookup) -> Vec<PathBuf> {
    // Open MPI built from source carries its own, beside its other libraries or in a folder there.
    let beside = |lib: PathBuf| [lib.join("libpmix.so.2"), lib.join("openmpi/libpmix.so.2")];
    let mut candidates = mpi::loaded("libpmix.so");
    let prefixes = ["PMIX_PREFIX", "OPAL_PREFIX"].into_iter().filter_map(lookup).map(PathBuf::from);
    // A relative one means the working directory, which may be anybody's.
    candidates.extend(prefixes.filter(|prefix| prefix.is_absolute()).flat_map(|prefix| beside(prefix.join("lib"))));
    candidates.retain(|path| path.exists());
    candidates.push(PathBuf::from("libpmix.so.2"));
    for directory in std::env::split_paths(&lookup("PATH").unwrap_or_default()) {
        // As above: an empty entry means it, too.
        if directory.is_absolute() && directory.join("mpirun").exists() {
            candidates.extend(beside(directory.join("../lib")));
        }
    }
    candidates
}

impl Api {
    /// The library, loaded once and for good: it runs threads of its own.
    fn load(lookup: Lookup) -> Result<&'static Api> {
        static API: OnceLock<Api> = OnceLock::new();
        if let Some(api) = API.get() {
            return Ok(api);
        }
        let api = Api::open(lookup)?;
        Ok(API.get_or_init(|| api))
    }

    fn open(lookup: Lookup) -> Result<Api> {
        let mut errors = Vec::new();
        for path in candidates(lookup) {
            // SAFETY: loading runs the library's initialisers; this is the launcher's own library, which its
            // administrator installed for programs to load.
            match unsafe { Library::new(&path) } {
                Ok(library) => return Api::bind(library, &path.display().to_string()),
                Err(error) => errors.push(error.to_string()),
            }
        }
        Err(Error::bootstrap(format!(
            "this process was started through PMIx (PMIX_NAMESPACE is set), but its library cannot be loaded: {}; install it \
             (Debian and Ubuntu: apt-get install libpmix2; elsewhere the package openpmix or pmix), put the directory of libpmix.so.2 into LD_LIBRARY_PATH, \
             or set MASTER_ADDR and MASTER_PORT to an address of rank 0's host and a free port there",
            errors.join("; ")
        )))
    }

    fn bind(library: Library, path: &str) -> Result<Api> {
        let lacks = |error: libloading::Error| {
            Error::bootstrap(format!("{path} is not a PMIx library that can be used: {error}"))
        };
        // SAFETY: the types are those of pmix.h, PMIx 3 to 6. The pointers are kept beside the library that they point
        // into.
        unsafe {
            let version: unsafe extern "C" fn() -> *const c_char =
                *library.get(b"PMIx_Get_version\0").map_err(lacks)?;
            let version = text(version());
            if !is_known(&version) {
                return Err(Error::bootstrap(format!("{path} is \"{version}\"; Maypole knows PMIx 3 to 6")));
            }
            let short = version.split([',', '(']).next().unwrap_or_default().trim();
            Ok(Api {
                description: format!("{path} ({short})"),
                init: *library.get(b"PMIx_Init\0").map_err(lacks)?,
                finalize: *library.get(b"PMIx_Finalize\0").map_err(lacks)?,
                put: *library.get(b"PMIx_Put\0").map_err(lacks)?,
                commit: *library.get(b"PMIx_Commit\0").map_err(lacks)?,
                get: *library.get(b"PMIx_Get\0").map_err(lacks)?,
                get_nb: *library.get(b"PMIx_Get_nb\0").map_err(lacks)?,
                error_string: *library.get(b"PMIx_Error_string\0").map_err(lacks)?,
                _library: library,
            })
        }
    }

    /// `Ok` for success, otherwise an error that says what the call was for.
    fn check(&self, status: c_int, doing: &str) -> Result<()> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: the function takes any number and returns a static C string.
        let text = unsafe { text((self.error_string)(status)) };
        Err(Error::bootstrap(format!("PMIx cannot {doing}: {text} ({status})")))
    }
}

impl Value {
    /// The number that it is, if it is one.
    ///
    /// # Safety
    /// It is a valid `pmix_value_t`.
    unsafe fn number(&self) -> Option<usize> {
        // SAFETY: the kind says which member of the union holds.
        unsafe {
            match self.kind {
                TYPE_UINT16 => Some(self.data.uint16 as usize),
                TYPE_UINT32 | TYPE_PROC_RANK => Some(self.data.uint32 as usize),
                TYPE_SIZE | TYPE_UINT64 => usize::try_from(self.data.uint64).ok(),
                _ => None,
            }
        }
    }

    /// The bytes that it is, if it is some and they are no more than rank 0 posts.
    ///
    /// # Safety
    /// It is a valid `pmix_value_t`.
    unsafe fn notice(&self) -> Option<Vec<u8>> {
        if self.kind != TYPE_BYTE_OBJECT {
            return None;
        }
        // SAFETY: the kind says that this member of the union holds.
        let object = unsafe { self.data.bytes };
        if object.bytes.is_null() || object.size > LONGEST_NOTICE {
            return None;
        }
        // SAFETY: the caller's promise, of which so many bytes there are a part.
        Some(unsafe { std::slice::from_raw_parts(object.bytes.cast::<u8>(), object.size) }.to_vec())
    }
}

/// Whether the structures of a library that calls its version this are those used here.
fn is_known(version: &str) -> bool {
    let major = version.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
    major.and_then(|digits| digits.parse::<u32>().ok()).is_some_and(|major| (3..=6).contains(&major))
}

/// A C string's text.
///
/// # Safety
/// `pointer` is null or a C string that lives during the call.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return "no text".to_string();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// This process as a client of the launcher's PMIx server, between `PMIx_Init` and `PMIx_Finalize`.
struct Session {
    api: &'static Api,
    me: Proc,
    /// Which process that is: a child by `fork` has no session, and must not end its parent's.
    process: fork::Process,
}

/// This process's one session.
static SESSION: Mutex<Option<Session>> = Mutex::new(None);

impl Session {
    /// Who this process is; the first time, say so to the launcher, and have it said farewell at the end.
    fn begin(api: &'static Api) -> Result<Proc> {
        let mut session = SESSION.lock();
        if let Some(session) = session.as_ref().filter(|session| session.process.is_this()) {
            return Ok(session.me);
        }
        let mut me = Proc { nspace: [0; 256], rank: 0 };
        // SAFETY: `me` is a pmix_proc_t for the library to fill; no directives are given.
        let status = unsafe { (api.init)(&mut me, std::ptr::null_mut(), 0) };
        api.check(status, "reach the launcher (is mpirun still running?)")?;
        if session.replace(Session { api, me, process: fork::Process::this() }).is_none() {
            // SAFETY: `end` lives as long as this library is loaded (the C library runs it before unloading), and
            // neither unwinds nor touches anything but a static.
            unsafe { libc::atexit(Session::end) };
        }
        Ok(me)
    }

    extern "C" fn end() {
        // Another thread may be about to begin one while main returns.
        let Some(mut session) = SESSION.try_lock() else { return };
        if let Some(Session { api, .. }) = session.take().filter(|session| session.process.is_this()) {
            // SAFETY: pairs with the PMIx_Init of `begin`; no directives are given. The library is never unloaded.
            unsafe { (api.finalize)(std::ptr::null(), 0) };
        }
    }
}

/// A board in this process's session.
struct Client {
    api: &'static Api,
    me: Proc,
    /// The number of the notice that it comes for, and its key. The library keeps what it has got, so each has another.
    notice: usize,
    key: CString,
    /// How long the launcher may take to answer what needs no other rank.
    answer: Duration,
}

impl Client {
    fn connect(api: &'static Api) -> Result<Client> {
        let me = Session::begin(api)?;
        let notice = notice_number();
        let key = CString::new(format!("maypole.{notice}")).expect("no zero byte in it");
        Ok(Client { api, me, notice, key, answer: Duration::ZERO })
    }

    /// An integer that the launcher provides about `whom`.
    fn number(&self, whom: &Proc, key: &CStr) -> Option<usize> {
        let mut value: *mut Value = std::ptr::null_mut();
        // SAFETY: pointers to live values of the right types; what comes back is ours to free.
        let status = unsafe { (self.api.get)(whom, key.as_ptr(), std::ptr::null(), 0, &mut value) };
        if status != SUCCESS || value.is_null() {
            return None;
        }
        // SAFETY: the library returned a valid pmix_value_t from malloc.
        unsafe {
            let number = (*value).number();
            libc::free(value.cast());
            number
        }
    }

    /// Ask once for rank 0's notice; `Ok(None)` if the launcher says that there is none yet.
    fn ask(&self, limit: &Limit) -> Result<Option<Vec<u8>>> {
        let (sender, receiver) = channel::<std::result::Result<Vec<u8>, c_int>>();
        let rank0 = Proc { rank: 0, ..self.me };
        let data = Box::into_raw(Box::new(sender)).cast();
        // SAFETY: `rank0` and the key are copied by the call. `data` is passed to `got` exactly once if the call
        // succeeds, and never if it fails.
        let status = unsafe { (self.api.get_nb)(&rank0, self.key.as_ptr(), std::ptr::null(), 0, got, data) };
        if status != SUCCESS {
            // SAFETY: see above: the callback will not come, so the box is ours again.
            drop(unsafe { Box::from_raw(data.cast::<Sender<std::result::Result<Vec<u8>, c_int>>>()) });
            return self.not_yet(status);
        }
        loop {
            match receiver.recv_timeout(limit.left().min(LOOK)) {
                Ok(Ok(bytes)) => return Ok(Some(bytes)),
                Ok(Err(status)) => return self.not_yet(status),
                Err(RecvTimeoutError::Timeout) if !limit.has_passed() => {}
                // The box stays with the library, which may still answer; a few words are lost.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Err(self.late()),
            }
        }
    }

    /// Whether a failure may turn into success if one asks again.
    fn not_yet(&self, status: c_int) -> Result<Option<Vec<u8>>> {
        match status {
            ERR_NOT_FOUND | ERR_TIMEOUT => Ok(None),
            status => self.api.check(status, "read what rank 0 posted").map(|()| None),
        }
    }

    fn late(&self) -> Error {
        Error::bootstrap(format!(
            "rank {}: rank 0 has posted nothing through PMIx in time: it has not started, or has not created its communicator",
            self.me.rank
        ))
    }
}

/// The library's answer to `PMIx_Get_nb`, on its own thread.
extern "C" fn got(status: c_int, value: *mut Value, data: *mut c_void) {
    // SAFETY: `data` is the box that `ask` gave to the call whose answer this is, and there is one answer.
    let sender = unsafe { Box::from_raw(data.cast::<Sender<std::result::Result<Vec<u8>, c_int>>>()) };
    let answer = if status != SUCCESS || value.is_null() {
        Err(if status == SUCCESS { ERR_NOT_FOUND } else { status })
    } else {
        // SAFETY: on success `value` is a valid pmix_value_t during the callback.
        unsafe { (*value).notice() }.ok_or(ERR_NOT_FOUND)
    };
    // Nobody listens any more after a deadline.
    let _ = sender.send(answer);
}

impl Board for Client {
    fn post(&mut self, bytes: &[u8]) -> Result<()> {
        let (api, key, bytes) = (self.api, self.key.clone(), bytes.to_vec());
        bounded(&Limit::after(self.answer), "take rank 0's notice", move || {
            let object = ByteObject { bytes: bytes.as_ptr().cast_mut().cast(), size: bytes.len() };
            let mut value = Value { kind: TYPE_BYTE_OBJECT, data: Data { bytes: object } };
            // SAFETY: the value points to `bytes` for the length of the call, which copies it and does not write.
            let status = unsafe { (api.put)(SCOPE_GLOBAL, key.as_ptr(), &mut value) };
            api.check(status, "take rank 0's notice")?;
            // SAFETY: takes nothing.
            let status = unsafe { (api.commit)() };
            api.check(status, "publish rank 0's notice")
        })?
    }

    fn read(&mut self, within: Duration) -> Result<Vec<u8>> {
        let limit = Limit::after(within);
        let mut pause = Duration::from_millis(2);
        loop {
            if let Some(bytes) = self.ask(&limit)? {
                return Ok(bytes);
            }
            if limit.left() <= pause {
                return Err(self.late());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    fn done(&mut self) {
        is_done_with(self.notice);
    }

    fn finish(&mut self) -> Result<()> {
        // The session outlives the board; see the module's text.
        Ok(())
    }
}

/// Values that a library hands over, see [`crate::outside`].
#[cfg(any(test, fuzzing))]
pub(super) mod outside {
    use super::*;
    use crate::outside::input::Input;

    pub(crate) fn pmix(data: &[u8]) -> bool {
        let mut input = Input(data);
        let kind = u16::from(input.byte());
        let word: [u8; 8] = std::array::from_fn(|_| input.byte());
        let (word, bytes) = (u64::from_ne_bytes(word), input.rest());
        let object = ByteObject { bytes: bytes.as_ptr().cast_mut().cast(), size: bytes.len() };
        let value = match kind {
            TYPE_BYTE_OBJECT => Value { kind, data: Data { bytes: object } },
            _ => Value { kind, data: Data { uint64: word } },
        };
        // SAFETY: the member that the kind means is the one that was set.
        let (number, notice) = unsafe { (value.number(), value.notice()) };
        assert!(number.is_none() || notice.is_none());
        assert!(number.is_none_or(|number| number as u64 <= word));
        if let Some(notice) = &notice {
            assert!(notice == bytes && notice.len() <= LONGEST_NOTICE);
        }
        is_known(&String::from_utf8_lossy(bytes)) || number.is_some() || notice.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_not_loaded_from_relative_directories() {
        let home = std::env::temp_dir().join(format!("maypole-pmix-{}", std::process::id()));
        std::fs::create_dir_all(home.join("lib")).unwrap();
        for file in ["mpirun", "lib/libpmix.so.2"] {
            std::fs::write(home.join(file), "").unwrap();
        }
        let here = std::env::current_dir().unwrap();
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        let relative = up.join(home.strip_prefix("/").unwrap());
        assert!(relative.join("mpirun").exists(), "the same directory");
        let with = |prefix: &std::path::Path, path: &[&std::path::Path]| {
            let path = std::env::join_paths(path).unwrap().into_string().unwrap();
            let prefix = prefix.to_str().unwrap().to_string();
            let mut found = candidates(&|name| match name {
                "OPAL_PREFIX" => Some(prefix.clone()),
                "PATH" => Some(path.clone()),
                _ => None,
            });
            // Another test may have loaded the system's.
            found.retain(|path| path.is_relative() || path.starts_with(&home));
            found
        };
        let by_name = PathBuf::from("libpmix.so.2");
        let nowhere = std::path::Path::new("");
        assert_eq!(with(&relative, &[&relative, nowhere]), std::slice::from_ref(&by_name));
        let [near, far] = ["../lib/libpmix.so.2", "../lib/openmpi/libpmix.so.2"].map(|path| home.join(path));
        let there = [home.join("lib/libpmix.so.2"), by_name, near, far];
        assert_eq!(with(&home, &[&relative, &home]), there);
        std::fs::remove_dir_all(&home).unwrap();
    }
}
