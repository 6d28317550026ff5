# `cmake --install build --prefix DIR`: a tree that works wherever it is moved to. The executable
# carries the engine and the Lua modules; plain LuaJIT finds the library beside the modules
# (lua/lumuon/lib.lua looks for ../../../../lib from where it lies).
install(TARGETS lumuon RUNTIME DESTINATION bin)
install(TARGETS liblumuon LIBRARY DESTINATION lib)
install(FILES engine/include/lumuon.h DESTINATION include)
install(DIRECTORY lua/lumuon DESTINATION share/lua/5.1)
install(FILES ${CDEF} DESTINATION share/lua/5.1/lumuon)
install(DIRECTORY recipes DESTINATION share/lumuon)
install(DIRECTORY docs/ DESTINATION share/doc/lumuon FILES_MATCHING PATTERN "*.md")
install(FILES LICENSE DESTINATION share/doc/lumuon)
if(EXISTS ${CMAKE_SOURCE_DIR}/README.md)
  install(FILES README.md DESTINATION share/doc/lumuon)
endif()
