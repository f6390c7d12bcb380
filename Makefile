.PHONY: help dev test shim lint format bench sanitize

help:            ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'
dev:             ## rebuild the compiled module in place
	pip install -q --no-build-isolation --no-deps -e .
test:            ## all tests
	pytest -q
shim:            ## the CUDA sources as fibers on the CPU
	pytest -q python_tests/test_native.py
sanitize:        ## the operations with AddressSanitizer and UBSan, the thread pool with ThreadSanitizer
	python bench/sanitize.py
lint:            ## what CI checks
	pytest -q python_tests/test_style.py python_tests/test_floors.py
format:          ## apply the formatters
	ruff format . && ruff check --fix .
	clang-format -i $$(find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp')
bench:           ## kernel benchmark and tables
	python bench/kernels.py && python bench/fill.py
