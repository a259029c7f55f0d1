"""Reads and writes the files of a run: its folder, checkpoints, client states, privacy ledgers and saved adapter.

What the files mean to a run is decided in `rounds/` and `setup/`. Every package above may import it.
"""

from fftmoe.store.adapter import ADAPTER as ADAPTER
from fftmoe.store.adapter import KEPT_ROUND as KEPT_ROUND
from fftmoe.store.adapter import LAST_ADAPTER as LAST_ADAPTER
from fftmoe.store.adapter import LAST_ROUND as LAST_ROUND
from fftmoe.store.adapter import SavedWith as SavedWith
from fftmoe.store.adapter import adapter_of as adapter_of
from fftmoe.store.adapter import read_labels as read_labels
from fftmoe.store.adapter import read_said as read_said
from fftmoe.store.adapter import read_temperature as read_temperature
from fftmoe.store.adapter import save_adapter as save_adapter
from fftmoe.store.adapter import sort_sets as sort_sets
from fftmoe.store.adapter import write_beside as write_beside
from fftmoe.store.bindings import Bindings as Bindings
from fftmoe.store.client_states import ClientStateFiles as ClientStateFiles
from fftmoe.store.files import DamagedFileError as DamagedFileError
from fftmoe.store.files import disk_errors as disk_errors
from fftmoe.store.files import write_atomically as write_atomically
from fftmoe.store.owner import check_free as check_free
from fftmoe.store.owner import owned as owned
from fftmoe.store.owner import owner_of as owner_of
from fftmoe.store.ranking import BAR as BAR
from fftmoe.store.ranking import Ranking as Ranking
from fftmoe.store.rows import RowFile as RowFile
from fftmoe.store.run_folder import SITES as SITES
from fftmoe.store.run_folder import Best as Best
from fftmoe.store.run_folder import RunFolder as RunFolder
from fftmoe.store.run_folder import Saved as Saved
from fftmoe.store.run_folder import check_output as check_output
from fftmoe.store.run_folder import check_run_output as check_run_output
from fftmoe.store.run_folder import read_config as read_config
from fftmoe.store.run_folder import read_run as read_run
from fftmoe.store.run_folder import read_summary as read_summary
from fftmoe.store.server_state import pack_state as pack_state
from fftmoe.store.server_state import unpack_state as unpack_state
