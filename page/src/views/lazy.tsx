import type { ComponentChildren, ComponentType } from 'preact'
import { useSignal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { tellProblem } from '../state/ui'

/** A component whose code is fetched when it is first shown. */
export function lazy<P extends object>(load: () => Promise<ComponentType<P>>): (props: P) => ComponentChildren {
  let found: ComponentType<P> | null = null
  return function Lazy(props: P) {
    const there = useSignal(found !== null)
    useEffect(() => {
      if (!found) {
        load().then((one) => {
          found = one
          there.value = true
        }, tellProblem)
      }
    }, [])
    const Found = found
    return there.value && Found ? <Found {...props} /> : null
  }
}
