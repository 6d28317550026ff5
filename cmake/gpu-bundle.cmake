# Everything scripts/gpu-check needs on a machine with a GPU and without Lua, packages or network, in one
# archive: cmake -DLUMUON= -DSOURCE= -DBUILD= -P
set(folder ${BUILD}/gpu-check)
file(REMOVE_RECURSE ${folder})
file(MAKE_DIRECTORY ${folder}/bin/libraries ${folder}/bin/busted)
file(COPY ${LUMUON} DESTINATION ${folder}/bin)

# Shared libraries but for the C library's own, which belong to the system.
file(GET_RUNTIME_DEPENDENCIES EXECUTABLES ${LUMUON} RESOLVED_DEPENDENCIES_VAR libraries
     UNRESOLVED_DEPENDENCIES_VAR missing
     POST_EXCLUDE_REGEXES "/ld-linux" "/lib(c|m|dl|rt|pthread|resolv)\\.so")
if(missing)
  message(FATAL_ERROR "libraries of ${LUMUON} were not found: ${missing}")
endif()
foreach(library ${libraries})
  file(COPY ${library} DESTINATION ${folder}/bin/libraries FOLLOW_SYMLINK_CHAIN)
endforeach()

# Busted and what it stands on, as Lua modules that LuaJIT finds in LUA_PATH.
foreach(module busted luassert say cliargs pl mediator system term lfs dkjson)
  set(found OFF)
  foreach(place /usr/share/lua/5.1 /usr/local/share/lua/5.1 /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/lua/5.1
                /usr/lib/x86_64-linux-gnu/lua/5.1 /usr/lib/aarch64-linux-gnu/lua/5.1 /usr/local/lib/lua/5.1)
    foreach(name ${module} ${module}.lua ${module}.so)
      if(EXISTS ${place}/${name})
        get_filename_component(real ${place}/${name} REALPATH)
        if(IS_DIRECTORY ${real})
          execute_process(COMMAND cp -rL ${place}/${name} ${folder}/bin/busted/)
        else()
          configure_file(${real} ${folder}/bin/busted/${name} COPYONLY)
        endif()
        set(found ON)
      endif()
    endforeach()
  endforeach()
  if(NOT found)
    message(STATUS "gpu-check bundle: no Lua module ${module} here")
  endif()
endforeach()

foreach(part spec recipes scripts bench README.md)
  file(COPY ${SOURCE}/${part} DESTINATION ${folder})
endforeach()
execute_process(COMMAND ${CMAKE_COMMAND} -E tar cJf ${BUILD}/gpu-check.tar.xz gpu-check WORKING_DIRECTORY ${BUILD}
                RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "packing ${BUILD}/gpu-check.tar.xz failed")
endif()
file(REMOVE_RECURSE ${folder})
file(SIZE ${BUILD}/gpu-check.tar.xz size)
math(EXPR size "${size} / 1048576")
message(STATUS "${BUILD}/gpu-check.tar.xz, ${size} MiB")
