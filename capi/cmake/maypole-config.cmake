# find_package(maypole) gives the targets maypole::maypole (shared) and maypole::static. Found in a prefix in which this file
# lies at share/cmake/maypole.
get_filename_component(MAYPOLE_PREFIX "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
find_library(MAYPOLE_LIBRARY NAMES libmaypole.so PATHS "${MAYPOLE_PREFIX}" PATH_SUFFIXES lib lib64
             "lib/${CMAKE_LIBRARY_ARCHITECTURE}" NO_DEFAULT_PATH REQUIRED)
find_library(MAYPOLE_ARCHIVE NAMES libmaypole.a PATHS "${MAYPOLE_PREFIX}" PATH_SUFFIXES lib lib64
             "lib/${CMAKE_LIBRARY_ARCHITECTURE}" NO_DEFAULT_PATH)

if(NOT TARGET maypole::maypole)
  add_library(maypole::maypole SHARED IMPORTED)
  set_target_properties(maypole::maypole PROPERTIES
    IMPORTED_LOCATION "${MAYPOLE_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${MAYPOLE_PREFIX}/include")
endif()
if(MAYPOLE_ARCHIVE AND NOT TARGET maypole::static)
  find_package(Threads REQUIRED)
  add_library(maypole::static STATIC IMPORTED)
  set_target_properties(maypole::static PROPERTIES
    IMPORTED_LOCATION "${MAYPOLE_ARCHIVE}"
    INTERFACE_INCLUDE_DIRECTORIES "${MAYPOLE_PREFIX}/include"
    INTERFACE_LINK_LIBRARIES "Threads::Threads;${CMAKE_DL_LIBS};m")
endif()
set(maypole_FOUND TRUE)
