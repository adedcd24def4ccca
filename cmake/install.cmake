# What is installed where; see README.md. Files in /etc and of systemd go there whatever the prefix
# is, and DESTDIR goes before all of it.
if(CMAKE_LIBRARY_ARCHITECTURE)  # Debian looks there below any prefix, so the prefix may come late.
  set(CMAKE_INSTALL_LIBDIR lib/${CMAKE_LIBRARY_ARCHITECTURE} CACHE PATH "Of libraries")
endif()
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# daemon: what a node runs, and people operate.
install(TARGETS kvd kvctl RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT daemon)
install(FILES deploy/systemd/kvd.service deploy/systemd/kvd.socket
  DESTINATION /lib/systemd/system COMPONENT daemon)
install(FILES deploy/man/kvd.8 DESTINATION ${CMAKE_INSTALL_MANDIR}/man8 COMPONENT daemon)
install(FILES deploy/man/kvctl.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT daemon)

# /etc/kvd/kvd.toml: the sample, with what suits the units.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS deploy/kvd.toml)
file(READ deploy/kvd.toml sample)
foreach(pair "listen = \"unix:/run/kvd/kvd.sock\"|listen = \"unix:/run/kvd/kvd.sock\""
        "mode = \"0600\"|mode = \"0660\"" "group = \"inference\"|group = \"kvd\"")
  string(REPLACE "|" ";" pair ${pair})
  list(GET pair 0 from)
  list(GET pair 1 to)
  string(REPLACE "\n# ${from}\n" "\n${to}\n" changed "${sample}")
  if(changed STREQUAL sample)
    message(FATAL_ERROR "deploy/kvd.toml has no line '# ${from}', which the package changes")
  endif()
  set(sample "${changed}")
endforeach()
file(CONFIGURE OUTPUT etc/kvd.toml CONTENT "${sample}" @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/etc/kvd.toml DESTINATION /etc/kvd COMPONENT daemon)

# kvctl writes its own completions.
foreach(shell_file bash:bash-completion/completions/kvctl zsh:zsh/vendor-completions/_kvctl
        fish:fish/vendor_completions.d/kvctl.fish)
  string(REGEX MATCH "^([a-z]+):(.*)/([^/]+)$" _ ${shell_file})
  set(completion ${PROJECT_BINARY_DIR}/completion/${CMAKE_MATCH_3})
  add_custom_command(OUTPUT ${completion}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/completion
    COMMAND kvctl completion ${CMAKE_MATCH_1} > ${completion}
    DEPENDS kvctl VERBATIM)
  list(APPEND completions ${completion})
  install(FILES ${completion} DESTINATION ${CMAKE_INSTALL_DATADIR}/${CMAKE_MATCH_2}
    COMPONENT daemon)
endforeach()
add_custom_target(completions ALL DEPENDS ${completions})

# bench: the measuring program, which runs against any daemon.
install(TARGETS kvd-bench RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT bench)
install(FILES deploy/man/kvd-bench.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT bench)

# runtime: libkvd.so.0.  development: what a program needs to be built with it.
install(TARGETS kvd_shared EXPORT kvdTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT development
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
# python: libkvd.so.0 inside the package `kvd`, which client/python/pyproject.toml builds.
# One file: a wheel would hold a link's target twice.
install(FILES $<TARGET_FILE:kvd_shared> DESTINATION . RENAME libkvd.so.0 COMPONENT python
  EXCLUDE_FROM_ALL)
install(EXPORT kvdTargets NAMESPACE kvd:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvd
  COMPONENT development)
install(TARGETS kvd_client kvd_proto kvd_types
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
install(FILES client/client.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/kvd/client
  COMPONENT development)
install(FILES proto/types/block.h proto/types/endpoint.h proto/types/limits.h
  proto/types/namespace_descriptor.h proto/types/packed.h
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/kvd/proto/types COMPONENT development)

configure_package_config_file(cmake/kvdConfig.cmake.in kvdConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvd
  PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(kvdConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kvdConfig.cmake ${PROJECT_BINARY_DIR}/kvdConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kvd COMPONENT development)
file(RELATIVE_PATH kvd_prefix_from_pc
  ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(cmake/kvd.pc.in kvd.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/kvd.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
  COMPONENT development)
