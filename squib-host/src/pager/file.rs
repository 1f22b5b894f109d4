//! Pages from the files of a snapshot: a pair, or a base with its diffs.

use squib_snapshot::{Chain, SnapshotError};

use super::source::{Origin, PageSource, SourceError, Unexplained};

/// The RAM of a chain of snapshots, every byte compared with its checksum as it arrives.
///
/// The files stay open, so a save that replaces them by name (the saver's rename) leaves the source what it was.
#[derive(Debug)]
pub struct FileSource {
    chain: Chain,
}

impl FileSource {
    /// The RAM that `chain` restores.
    pub fn new(chain: Chain) -> FileSource {
        FileSource { chain }
    }

    /// The chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

impl PageSource for FileSource {
    fn size(&self) -> u64 {
        self.chain.ram_size()
    }

    /// A file that is short or altered is damaged for good. An error of the system (a network file system that is away, say)
    /// may pass, unless it says that the file ends too early.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError> {
        if self.chain.is_known_zero(offset, buf.len() as u64) {
            buf.fill(0);
            return Ok(Origin::Zero);
        }
        match self.chain.read_checked(offset, buf) {
            Ok(()) => Ok(Origin::File),
            Err(SnapshotError::MemoryIo(e)) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
                Err(SourceError::Unavailable(e.to_string()))
            }
            Err(SnapshotError::MemoryIo(e)) => Err(SourceError::Damaged(format!("the memory file is too short: {e}"))),
            Err(error) => Err(SourceError::Damaged(error.to_string())),
        }
    }

    fn read_quietly(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, Unexplained> {
        self.chain.read_page_checked(offset, buf).map(|()| Origin::File).map_err(|_| Unexplained)
    }

    fn expect(&self, offset: u64, len: u64) {
        self.chain.read_ahead(offset, len);
    }

    fn known_zero(&self, offset: u64, len: u64) -> u64 {
        if self.chain.is_known_zero(offset, len) { len } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use squib_snapshot::{Contents, GicState, MachineRecord, MicrovmState, PairRequest, VcpuState, save_pair};

    use super::*;

    const PAGE: u64 = 16 << 10;

    /// Four pages: two of sevens, a zero one, one of nines; in blocks of a page.
    fn saved(directory: &tempfile::TempDir) -> (PathBuf, PathBuf) {
        let (state_path, memory_path) = (directory.path().join("vm.state"), directory.path().join("vm.mem"));
        let state = MicrovmState {
            vcpu_states: vec![VcpuState::new(0)],
            gic_state: GicState::from_bytes(vec![1]),
            ..MicrovmState::default()
        };
        let ram: Vec<u8> = [7, 7, 0, 9].iter().flat_map(|&byte| vec![byte; PAGE as usize]).collect();
        save_pair(&PairRequest {
            state_path: &state_path,
            memory_path: &memory_path,
            state: &state,
            machine: &MachineRecord::default(),
            memory: &ram,
            ram_start: 0x4000_0000,
            ram_size: 4 * PAGE,
            contents: Contents::Full,
            block_size: PAGE,
        })
        .unwrap();
        (state_path, memory_path)
    }

    fn source(state: &PathBuf, memory: &PathBuf) -> FileSource {
        FileSource::new(Chain::open((state, memory), &[] as &[(PathBuf, PathBuf)]).unwrap())
    }

    #[test]
    fn pages_come_from_the_file_and_zeroes_from_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let (state, memory) = saved(&directory);
        let source = source(&state, &memory);
        assert_eq!(source.size(), 4 * PAGE);
        let mut page = vec![1; PAGE as usize];
        assert_eq!(source.read(3 * PAGE, &mut page).unwrap(), Origin::File);
        assert!(page.iter().all(|&byte| byte == 9));
        assert_eq!((source.known_zero(2 * PAGE, PAGE), source.known_zero(PAGE, PAGE)), (PAGE, 0));
        assert_eq!(source.read(2 * PAGE, &mut page).unwrap(), Origin::Zero);
        assert!(page.iter().all(|&byte| byte == 0));
        let mut all = vec![1; 4 * PAGE as usize];
        assert_eq!(source.read(0, &mut all).unwrap(), Origin::File);
        assert_eq!((all[0], all[2 * PAGE as usize], all[3 * PAGE as usize]), (7, 0, 9));
        // Its name may go, or be given to another file: the source keeps what it opened.
        std::fs::remove_file(&memory).unwrap();
        assert_eq!(source.read(0, &mut page).unwrap(), Origin::File);
        assert!(page.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn a_file_that_is_altered_or_cut_meanwhile_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let (state, memory) = saved(&directory);
        let source = source(&state, &memory);
        let file = File::options().write(true).open(&memory).unwrap();
        file.write_all_at(&[8], PAGE + 5).unwrap();
        let mut page = vec![1; PAGE as usize];
        source.read(0, &mut page).unwrap();
        let error = source.read(PAGE, &mut page).unwrap_err();
        assert!(matches!(&error, SourceError::Damaged(text) if text.contains("vm.mem")), "{error}");
        file.set_len(3 * PAGE + 10).unwrap();
        let error = source.read(3 * PAGE, &mut page).unwrap_err();
        assert!(matches!(&error, SourceError::Damaged(text) if text.contains("vm.mem")), "{error}");
    }
}
